// Transcribes a recording through the fleet, from Node. Needs: npm install celery-node@0.5.9
//
//   REDIS_URL=redis://:password@broker:6379/0 node node_client.js FILE_OR_URL [LANGUAGE]
//
// What may be sent and what comes back: contract.md of the package `workers`.
const celery = require("celery-node");

const [audio, language = "auto"] = process.argv.slice(2);
const url = process.env.REDIS_URL || "redis://localhost:6379/0";
const TIMEOUT_MS = 600_000;

async function main() {
  // A queue per client: "transcribe" for whisper.transcribe, "translate" for whisper.translate.
  const client = celery.createClient(url, url, "transcribe");
  const task = client.createTask("whisper.transcribe");
  const call = task.applyAsync([[{ audio }]], { options: { language, timestamps: true } });
  try {
    const [transcript] = await call.get(TIMEOUT_MS);
    for (const { start, end, text } of transcript.segments) {
      console.log(`${start.toFixed(2)} ${end.toFixed(2)} ${text}`);
    }
    console.log(transcript.text);
  } catch (error) {
    // error.message is FAILURE or TIMEOUT; the reasons of a FAILURE lie beside it.
    const [type, message] = error.exc_message || [error.message, `no answer within ${TIMEOUT_MS / 1000} s`];
    console.error(`${type}: ${message}`);
    process.exitCode = 1;
  } finally {
    await client.disconnect();
  }
}

if (audio) {
  main();
} else {
  console.error("usage: node node_client.js FILE_OR_URL [LANGUAGE]");
  process.exitCode = 2;
}
