// Shows text of a model: blocks and words in backticks as code, everything else as it is. Nothing of it becomes markup.

/** Replace what a node shows by a text. */
export function show(node, text) {
  node.replaceChildren(...blocks(text));
}

function blocks(text) {
  const nodes = [];
  // A block that is still being written has no end yet.
  const parts = text.split(/^```/m);
  for (const [index, part] of parts.entries()) {
    if (index % 2 === 0) {
      const after = index ? part.replace(/^\n/, "") : part;
      nodes.push(...inline(index < parts.length - 1 ? after.trimEnd() : after));
      continue;
    }
    const code = element("code", part.slice(part.indexOf("\n") + 1 || part.length).replace(/\n$/, ""));
    const block = document.createElement("pre");
    block.tabIndex = 0; // so that the keyboard can scroll it
    block.append(code);
    nodes.push(block);
  }
  return nodes;
}

function inline(text) {
  return text.split(/`([^`\n]+)`/).map((part, index) => (index % 2 ? element("code", part) : document.createTextNode(part)));
}

/** An element that shows a text. */
export function element(name, text = "", className = "") {
  const node = document.createElement(name);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}
