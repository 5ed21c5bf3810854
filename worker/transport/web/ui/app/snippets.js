// A request, written as programs send it. No key is in it, and images stand as the names of files.

import { BASE } from "./api.js";

/** Images become names of files; returns the request for reading and which files it names. */
function named(request) {
  const files = [];
  const walk = (value, name) => {
    if (typeof value === "string" && value.length > 300 && (value.startsWith("data:") || !/\s/.test(value.slice(0, 300)))) {
      const file = `${name}.${/^data:\w+\/(\w+)/.exec(value)?.[1] ?? "png"}`;
      files.push(file);
      return `BASE64 OF ${file}`;
    }
    if (Array.isArray(value)) return value.map((each, index) => walk(each, `${name}-${index + 1}`));
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, walk(each, key)]));
    return value;
  };
  return { input: Object.fromEntries(Object.entries(request).map(([name, value]) => [name, walk(value, name)])), files };
}

function python(value, indent = "    ") {
  if (value === null) return "None";
  if (value === true || value === false) return value ? "True" : "False";
  if (typeof value === "string") return value.startsWith("BASE64 OF ") ? `base64_of(${JSON.stringify(value.slice(10))})` : JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map((each) => python(each, indent)).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each, indent)}`).join(", ")}}`;
  return String(value);
}

const READ = `def base64_of(path):
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode()

`;

/** The request in the words of each kind of program, by its name. */
export function snippets(request) {
  const { input, files } = named(request);
  const address = BASE.href.replace(/\/$/, "");
  const json = JSON.stringify(input);
  const helper = files.length ? READ : "";
  return {
    curl: `curl -s ${address}/run -H 'Authorization: Bearer YOUR_KEY' \\
  -H 'Content-Type: application/json' -d '${json.replaceAll("'", "'\\''")}'`,
    Python: `import base64
import json
from urllib.request import Request, urlopen

${helper}body = ${python(input)}
headers = {"Content-Type": "application/json", "Authorization": "Bearer YOUR_KEY"}
request = Request("${address}/run", json.dumps(body).encode(), headers)
with urlopen(request) as response:
    answer = json.load(response)
with open("image.png", "wb") as file:
    file.write(base64.b64decode(answer.get("image") or answer["images"][0]))`,
    JavaScript: `const response = await fetch("${address}/run", {
  method: "POST",
  headers: { "Content-Type": "application/json", Authorization: "Bearer YOUR_KEY" },
  body: JSON.stringify(${JSON.stringify(input, null, 2).replaceAll("\n", "\n  ")}),
});
const answer = await response.json();
const image = "data:image/png;base64," + (answer.image ?? answer.images[0]);`,
    image_client: imageClient(input, address),
  };
}

const FIELDS = new Set(["negative_prompt", "model", "width", "height", "seed", "num_inference_steps", "guidance_scale", "strength"]);

/** The request for our own client: its fields by name, and what is the worker's alone as `extra`. */
function imageClient(input, address) {
  const { prompt, image, mask_image: mask, ...others } = input;
  const file = (value) => (String(value).startsWith("BASE64 OF ") ? JSON.stringify(value.slice(10)) : python(value));
  const extra = Object.fromEntries(Object.entries(others).filter(([name]) => !FIELDS.has(name)));
  const fields = Object.entries(others).filter(([name]) => FIELDS.has(name)).map(([name, value]) => `${name}=${python(value)}`);
  const words = prompt === undefined ? [] : [python(prompt)];
  const [verb, given] = mask ? ["inpaint", [file(image), file(mask), ...words]] : image && prompt === undefined ? ["upscale", [file(image)]]
    : image ? ["edit", [file(image), ...words]] : ["generate", words];
  const all = [...given, ...fields, ...(Object.keys(extra).length ? [`extra=${python(extra)}`] : [])];
  return `import asyncio

from image_client import ImageClient


async def main():
    async with ImageClient("selfhosted", base_url="${address}", api_token="YOUR_KEY") as client:
        image = await client.${verb}(${all.join(", ")})
        image.save("image.png")


asyncio.run(main())`;
}
