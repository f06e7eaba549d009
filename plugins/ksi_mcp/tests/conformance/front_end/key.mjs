// Adds a key to whatever a program asks for: node --import ./key.mjs PROGRAM, with KSI_KEY set.
import { subscribe } from "node:diagnostics_channel";

const bearer = `Bearer ${process.env.KSI_KEY}`;
subscribe("undici:request:create", ({ request }) => request.addHeader("authorization", bearer));
subscribe("http.client.request.created", ({ request }) => {
  request.setHeader("authorization", bearer);
});
