// Holds a conversation by AG-UI's own client, and prints what that has come to know, as JSON.
// node agent.mjs URL KEY AGENT PROMPT
import { HttpAgent } from "@ag-ui/client";

const [url, key, name, prompt] = process.argv.slice(2);
const agent = new HttpAgent({
  url,
  threadId: `of-${name}-${prompt}`.replaceAll(/\s/g, "-"),
  headers: { Authorization: `Bearer ${key}`, "x-agent-schema-name": name },
});
const tools = [
  { name: "pick_colour", description: "Pick a colour.", parameters: { type: "object", properties: {} } },
];
const events = [];
const subscriber = { onEvent: ({ event }) => void events.push(event) };

agent.addMessage({ id: "u1", role: "user", content: prompt });
await agent.runAgent({ tools }, subscriber);
for (let run = 0; run < 5; run += 1) {
  const last = events.at(-1);
  if (agent.pendingInterrupts.length > 0) {
    const resume = agent.pendingInterrupts.map((interrupt) => ({
      interruptId: interrupt.id,
      status: "resolved",
      payload: "the red one",
    }));
    await agent.runAgent({ tools, resume }, subscriber);
  } else if (last.outcome?.pendingToolCallIds?.length > 0) {
    for (const toolCallId of last.outcome.pendingToolCallIds) {
      agent.addMessage({ id: `of ${toolCallId}`, role: "tool", toolCallId, content: "blue" });
    }
    await agent.runAgent({ tools }, subscriber);
  } else {
    break;
  }
}
agent.addMessage({ id: "u2", role: "user", content: "and then?" });
await agent.runAgent({ tools }, subscriber);
console.log(JSON.stringify({ messages: agent.messages, events: events.map(({ type }) => type) }));
