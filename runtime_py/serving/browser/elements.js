// Elements of the page, made and looked up. Text is only ever text.

/** A new element; `properties` are set as they are, `children` are elements or texts. */
export function make(kind, properties = {}, ...children) {
  const element = Object.assign(document.createElement(kind), properties);
  element.append(...children);
  return element;
}

/** Scroll so that the last turn is seen. */
export const toTheEnd = () => scrollTo({ top: document.documentElement.scrollHeight });

export const at = (id) => document.getElementById(id);
