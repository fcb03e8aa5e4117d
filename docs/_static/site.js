// What scrolls sideways can be scrolled by the keyboard.
"use strict";

function makeFocusable() {
  for (const part of document.querySelectorAll("pre, .table-wrapper, .figure-scroll")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  }
}

makeFocusable();
window.addEventListener("resize", makeFocusable);
