// The page is whole without this: it only adds buttons that open and close a tree's nodes.
for (const tree of document.querySelectorAll(".tree")) {
  const tools = document.createElement("div");
  tools.className = "tools";
  const button = (name, wanted) => {
    const element = document.createElement("button");
    element.type = "button";
    element.textContent = name;
    element.onclick = () => {
      for (const node of tree.querySelectorAll("details")) node.open = wanted(node);
    };
    tools.append(element);
  };
  button("way to the best program", (node) => node.classList.contains("way"));
  button("all nodes", (node) => node.classList.contains("node"));
  button("everything", () => true);
  button("close", () => false);
  tree.before(tools);
}
