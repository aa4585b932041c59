// A static report: the run lies in the page itself, and nothing is asked of anybody.

import { embedded, fill } from "../dom.js";
import { read } from "../state.js";
import { showRun } from "../views/run.js";

const shown = showRun(embedded("document"));
fill(document.getElementById("run"), shown.element);
addEventListener("popstate", () => shown.follow(read()));
