// SPDX-License-Identifier: Apache-2.0
// The navigation is long: show the part in which the reader is.
{
  const tree = document.querySelector(".sidebar-scroll");
  const here = tree?.querySelector("li.current-page");
  if (here) {
    const top = here.getBoundingClientRect().top - tree.getBoundingClientRect().top - tree.clientHeight / 3;
    tree.scrollBy({ top, behavior: "instant" });
  }
}
