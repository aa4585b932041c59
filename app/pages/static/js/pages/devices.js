// The known devices, and a form that measures this machine again.

import { list, post } from "../api.js";
import { el, failure, fill, notice } from "../dom.js";
import * as format from "../format.js";
import { action, field, part, plain } from "../parts.js";

await Promise.all([
  part("devices", "The devices cannot be read", async () => {
    const devices = await list("/v1/devices");
    if (!devices.length)
      return notice(
        "info",
        "No device is known yet",
        "Measure this machine below, or with ",
        el("code", {}, "edgewise device"),
        ".",
      );
    return plain(
      "Devices",
      ["Device", "Fingerprint", "First seen", "Last measured"],
      devices.map((device) => [
        el("a", { href: `/devices/${device.fingerprint}` }, device.name),
        el("code", {}, device.fingerprint),
        format.when(device.created_us),
        format.when(device.updated_us),
      ]),
    );
  }),
  part("probe", "This machine cannot be measured", () => {
    const seconds = el("input", { type: "number", min: "0.1", max: "600", step: "any", value: "8", required: true });
    const said = el("div", { "aria-live": "polite" });
    const [button, reason] = action("Measure", "admin");
    async function measure(event) {
      event.preventDefault();
      button.disabled = true;
      try {
        const job = await post("/v1/jobs", { kind: "probe", request: { seconds: seconds.valueAsNumber } });
        location.assign(`/jobs/${job.id}`);
      } catch (error) {
        fill(said, failure("The job was not accepted", error));
        button.disabled = false;
      }
    }
    return [
      el(
        "form",
        { class: "form row", onsubmit: measure },
        field("Seconds", seconds, "About how long to measure; 8 is enough for stable figures"),
        button,
      ),
      reason,
      said,
    ];
  }),
]);
