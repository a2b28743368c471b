// The API as a page, from /openapi.json alone: nothing is fetched from elsewhere.
const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const api = await (await fetch("openapi.json")).json();
const resolve = (schema) => (schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema);

function parameters(operation) {
  const body = resolve(operation.requestBody?.content?.["application/json"]?.schema);
  const rows = [
    ...(operation.parameters ?? []).map((p) => `${p.name} (${p.in}): ${JSON.stringify(p.schema)}`),
    ...Object.entries(body?.properties ?? {}).map(([name, schema]) => `${name}: ${JSON.stringify(schema)}`),
  ];
  return rows.length ? [make("pre", { textContent: rows.join("\n") })] : [];
}

for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const head = make("summary", {}, make("span", { className: "method", textContent: method.toUpperCase() }), make("code", { textContent: path }), ` ${operation.summary ?? ""}`);
    document.getElementById("paths").append(make("details", {}, head, make("p", { textContent: operation.description ?? "" }), ...parameters(operation)));
  }
}
