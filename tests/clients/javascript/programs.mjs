// One image by each of the clients for JavaScript: `node programs.mjs <name> <address> <key>` prints it as base64.
import { writeFileSync } from "node:fs";

const [name, address, key] = process.argv.slice(2);
const small = { prompt: "a red apple", seed: 7, num_inference_steps: 3, width: 64, height: 64 };

const programs = {
  async fetch() {
    const answer = await fetch(`${address}/v1/images/generations`, {
      method: "POST",
      headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json" },
      body: JSON.stringify({ model: "demo", prompt: "a red apple", size: "64x64", response_format: "b64_json" }),
    });
    if (!answer.ok) throw new Error(await answer.text());
    return (await answer.json()).data[0].b64_json;
  },

  async openai() {
    const { OpenAI } = await import("openai");
    const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: key });
    const answer = await client.images.generate({ model: "demo", prompt: "a red apple", size: "64x64" });
    return answer.data[0].b64_json;
  },

  async replicate() {
    const { default: Replicate } = await import("replicate");
    const client = new Replicate({ auth: key, baseUrl: `${address}/v1`, useFileOutput: true });
    const [file] = await client.run("local/demo", { input: small, wait: { mode: "block", timeout: 60 } });
    const chunks = [];
    for await (const chunk of file) chunks.push(chunk);
    const prediction = await client.predictions.create({ model: "local/demo", input: small });
    const finished = await client.wait(prediction, { interval: 100 });
    if (finished.status !== "succeeded") throw new Error(finished.error);
    const ids = [];
    for await (const page of client.paginate(client.predictions.list)) ids.push(...page.map((each) => each.id));
    if (!ids.includes(prediction.id)) throw new Error("the list lacks the prediction");
    return Buffer.concat(chunks).toString("base64");
  },
};

writeFileSync(1, await programs[name]());
