"use strict";
// Links each phrase to its mask: pointing at or focusing one lights the other; a click or Enter keeps it, Escape lets go.
const linkFace = (face) => {
  const parts = [...face.querySelectorAll("[data-evidence]")];
  const controls = parts.filter((part) => part.classList.contains("phrase") || part.classList.contains("hit"));
  let kept = null;
  const show = (id) => {
    face.classList.toggle("has-active", id !== null);
    for (const part of parts) part.classList.toggle("is-active", part.dataset.evidence === id);
  };
  const keep = (id) => {
    kept = kept === id ? null : id;
    for (const control of controls) control.setAttribute("aria-pressed", String(control.dataset.evidence === kept));
    show(kept);
  };
  for (const control of controls) {
    const id = control.dataset.evidence;
    control.addEventListener("pointerenter", () => show(id));
    control.addEventListener("pointerleave", () => show(kept));
    control.addEventListener("focus", () => show(id));
    control.addEventListener("blur", () => show(kept));
    control.addEventListener("click", () => keep(id));
    control.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { kept = id; keep(id); }
      if (control.classList.contains("hit") && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); keep(id); }
    });
  }
};
document.querySelectorAll("[data-face]").forEach(linkFace);
