// A client with nothing but node's own `net`: asks, subscribes, and answers an event.
import net from "node:net";
import readline from "node:readline";

const socket = net.connect(process.argv[2]);
const send = (frame) => socket.write(JSON.stringify(frame) + "\n");

send({ id: 1, event: "system:hello", data: {} });
send({ id: 2, event: "router:subscribe", data: { pattern: "news:*" } });
send({ id: 3, event: "router:serve", data: { event: "node:shout", doc: "Shout a word." } });

for await (const line of readline.createInterface({ input: socket })) {
  const frame = JSON.parse(line);
  if (frame.error) throw new Error(frame.error.message);
  if (frame.event === "node:shout")
    send({ id: frame.id, result: { shouted: frame.data.word.toUpperCase() } });
  else if (frame.subscription) console.log(`news: ${frame.data.headline}`);
  else if (frame.id === 1) console.log(`hello, ${frame.result.principal}`);
  else if (frame.id === 3) console.log("ready");
}
