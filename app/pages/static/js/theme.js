// Light or dark: as the system has it, or as chosen here. Runs before the first paint, therefore no module.

(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  const kept = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // a page opened from a file may have no storage
    }
  };
  if (["light", "dark"].includes(kept())) root.dataset.theme = kept();

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => {
      const next = current() === "dark" ? "Light" : "Dark";
      button.textContent = next;
      button.setAttribute("aria-label", `${next} theme`);
    };
    const change = () => {
      show();
      dispatchEvent(new Event("themechange"));
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = current() === "dark" ? "light" : "dark";
      try {
        localStorage.setItem("theme", root.dataset.theme);
      } catch {
        // then it lasts as long as the page
      }
      change();
    });
    dark.addEventListener("change", change);
    show();
  });
})();
