// A static report: the page itself holds the run, and nothing is loaded.

import { embedded, fill } from "../dom.js";
import { read } from "../state.js";
import { showRun } from "../views/run.js";

const shown = showRun(embedded("document"));
fill(document.getElementById("run"), shown.element);
addEventListener("popstate", () => shown.follow(read()));
