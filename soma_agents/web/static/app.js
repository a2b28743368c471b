// The page: talk, judge, see what SOMA knows and what it learnt. Model output is only ever text.
const $ = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
let conversation = null;

// --- talking to the server -------------------------------------------------------------------

async function call(path, options = {}) {
  const key = sessionStorage.getItem("soma-key");
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const body = options.body && JSON.stringify(options.body);
  const response = await fetch(path, { ...options, headers, body });
  if (response.status === 401) {
    const given = prompt("API key");
    if (given) {
      sessionStorage.setItem("soma-key", given);
      return call(path, options);
    }
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => null);
    throw new Error(problem?.error?.message ?? `${response.status} ${response.statusText}`);
  }
  return response;
}

const get = async (path) => (await call(path)).json();
const post = async (path, body) => (await call(path, { method: "POST", body })).json();

async function* serverSentEvents(response) {
  let rest = "";
  for await (const bytes of response.body.pipeThrough(new TextDecoderStream())) {
    const blocks = (rest + bytes).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function report(error) {
  $("problem").textContent = error?.message ?? "";
  $("problem").hidden = !error;
}

// --- the conversation ------------------------------------------------------------------------

function show(role, content, inference) {
  const said = make("p", { className: "said", textContent: content });
  const item = make("li", { className: role }, said);
  if (inference) item.append(judge(inference));
  $("messages").append(item);
  item.scrollIntoView({ block: "end" });
  return { item, said };
}

function judge(inference) {
  const rate = (value, label, title) => {
    const button = make("button", { type: "button", textContent: label, title, ariaPressed: "false" });
    button.onclick = async () => {
      await give(inference, "rating", value);
      for (const other of button.parentElement.children) other.ariaPressed = String(other === button);
    };
    return button;
  };
  const better = make("button", { type: "button", textContent: "Better answer…" });
  better.onclick = async () => {
    const answer = prompt("What should SOMA have answered?");
    if (answer) await give(inference, "demonstration", answer);
    better.ariaPressed = String(Boolean(answer));
  };
  return make("div", { className: "judge" }, rate(1, "👍", "Good answer"), rate(-1, "👎", "Bad answer"), better);
}

const give = (target, name, value) =>
  post("feedback", { target, target_kind: "inference", name, value }).then(() => report(), report);

async function send(text) {
  show("user", text);
  const { item, said } = show("assistant", "");
  const response = await call("api/reason", { method: "POST", body: { message: text, conversation, stream: true } });
  let inference = null;
  for await (const piece of serverSentEvents(response)) {
    if (piece.error) throw new Error(piece.error.message);
    conversation = piece.soma_conversation ?? conversation;
    inference = piece.soma_inference ?? inference;
    said.textContent += piece.delta ?? "";
    item.scrollIntoView({ block: "end" });
  }
  if (inference) item.append(judge(inference));
}

async function open(id) {
  conversation = id;
  $("messages").replaceChildren();
  if (id) {
    const history = await get(`api/conversation/history?conversation=${encodeURIComponent(id)}`);
    for (const message of history.data) show(message.role, message.content, message.inference);
  }
  await refresh();
}

// --- what SOMA knows and learns --------------------------------------------------------------

async function refresh() {
  const [status, list, profile, receipts] = await Promise.all([
    get("api/status"), get("api/conversation/list"), get("api/profile"), get("api/receipts?limit=5"),
  ]);
  $("champion").textContent = status.champion.name;
  $("round").textContent = status.round ? `round ${status.round.step}, ${Math.round(100 * status.round.progress)}%` : "";
  $("conversations").replaceChildren(...list.data.map((c) => {
    const button = make("button", { type: "button", textContent: c.title || c.id, ariaCurrent: c.id === conversation ? "true" : null });
    button.onclick = () => open(c.id).catch(report);
    return button;
  }));
  $("facts").replaceChildren(...profile.facts.flatMap((f) => [make("dt", { textContent: f.subject }), make("dd", { textContent: f.value })]));
  $("receipts").replaceChildren(...receipts.data.map((r) => make("li", { textContent: `${r.candidate?.name ?? r.round}: ${r.verdict}. ${r.because}` })));
}

$("compose").onsubmit = async (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  $("send").disabled = true;
  await send(text).then(() => report(), report);
  $("send").disabled = false;
  await refresh().catch(report);
};
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("compose").requestSubmit();
  }
};
$("new").onclick = () => open(null).catch(report);
refresh().catch(report);
setInterval(() => refresh().catch(report), 10_000);
