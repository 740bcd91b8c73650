// The page: loads everything, runs episodes in real time, shows them. `window.decisionSeq` is a
// promise of {episode, robot, task, pause}, for tests and consoles.

import loadMujoco from "./lib/mujoco.js";
import { Episode } from "./episode.js";
import { Policy } from "./policy.js";
import { Robot } from "./robot.js";
import { Scene } from "./scene.js";

const CATCH_UP = 0.1; // seconds of simulation a frame computes at most, on a slow machine
const REST = 1500; // milliseconds between episodes
const KEPT = 5; // episodes in the table
const element = (id) => document.getElementById(id);

// Bytes of a file packed by gzip; some servers unpack such files themselves.
async function unpacked(path) {
  const bytes = await (await fetch(path)).arrayBuffer();
  if (new DataView(bytes).getUint16(0) != 0x1f8b) return bytes;
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(plain).arrayBuffer();
}

async function load() {
  const [task, xml, simulator, runtime] = await Promise.all([
    fetch("demo.json").then((response) => response.json()),
    fetch("robot.xml").then((response) => response.text()),
    unpacked("lib/mujoco.wasm.gz"),
    unpacked("lib/ort.wasm.gz"),
  ]);
  const mujoco = await loadMujoco({ wasmBinary: simulator });
  const robot = new Robot(mujoco, xml, task);
  const policies = {};
  for (const context of ["stream", "window"]) {
    policies[context] = await Policy.load(context, runtime);
  }
  const episode = new Episode(robot, policies, task);
  const page = new Page(mujoco, robot, episode, task);
  page.frame(performance.now());
  return { episode, robot, task, pause: () => (page.running = false) };
}

class Page {
  constructor(mujoco, robot, episode, task) {
    Object.assign(this, { robot, episode, task, running: true, owed: 0, before: 0 });
    document.title = `${task.env} by ${task.agent}`;
    element("title").textContent = document.title;
    element("target-row").hidden = !task.targets;
    element("asked").parentElement.hidden = !task.targets;
    if (task.targets) {
      const { low, high, step, first } = task.targets;
      Object.assign(element("target"), { min: low, max: high, step, value: first });
    }
    try {
      this.scene = new Scene(element("scene"), mujoco, robot.model);
      this.say("");
    } catch (error) {
      this.say(error.message);
    }
    this.listen();
  }

  listen() {
    const { episode } = this;
    element("target").oninput = () => (episode.target = Number(element("target").value));
    element("context").onchange = () => episode.reset({ context: element("context").value });
    element("push").onclick = () => this.robot.push();
    element("restart").onclick = () => episode.reset();
    element("pause").onclick = () => (this.running = !this.running);
  }

  // Steps that are due by now, then a picture.
  async frame(now) {
    const { episode } = this;
    this.owed = Math.min(this.owed + (now - this.before) / 1000, CATCH_UP + this.task.dt);
    this.before = now;
    if (this.running && !episode.ended) {
      const count = Math.floor(this.owed / this.task.dt);
      this.owed -= count * this.task.dt;
      if (count) await episode.step(count);
      if (episode.ended) this.note();
    }
    this.show();
    this.scene?.draw(this.robot.data);
    requestAnimationFrame((time) => this.frame(time));
  }

  show() {
    const { episode, task } = this;
    element("asked").textContent = Math.round(episode.target);
    element("target-value").textContent = Math.round(episode.target);
    element("return").textContent = Math.round(episode.total);
    element("steps").textContent = `${episode.steps} of ${task.max_steps ?? "any number"}`;
    element("milliseconds").textContent = episode.milliseconds.toFixed(2);
    element("pause").textContent = this.running ? "Pause" : "Go on";
  }

  // A row for the episode that ended; the next one begins after a rest.
  note() {
    const { episode } = this;
    const asked = this.task.targets ? Math.round(episode.target) : "–";
    const end = episode.terminated ? "fell" : "time was up";
    const row = document.createElement("tr");
    for (const text of [asked, Math.round(episode.total), episode.steps, end, episode.context]) {
      row.insertCell().textContent = text;
    }
    element("episodes").prepend(row);
    while (element("episodes").rows.length > KEPT) element("episodes").lastChild.remove();
    setTimeout(() => episode.ended && episode.reset(), REST);
  }

  say(text) {
    element("status").textContent = text;
    element("status").hidden = !text;
  }
}

window.decisionSeq = load();
window.decisionSeq.catch((error) => {
  element("status").textContent = `The page could not start: ${error.message}`;
});
