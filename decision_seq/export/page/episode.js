// One episode after another of a robot under a policy, one step at a time. What changes an episode
// waits for the step that is being computed, so nothing meets a step half done.

export class Episode {
  // robot: Robot; policies: {window: Policy, stream: Policy}; task: demo.json
  constructor(robot, policies, task) {
    Object.assign(this, { robot, policies, task });
    this.context = "stream";
    this.target = task.targets?.first ?? 0;
    this.turn = Promise.resolve();
    this.begin(0);
  }

  // After what is under way; resolves when done.
  inTurn(act) {
    this.turn = this.turn.then(act);
    return this.turn;
  }

  begin(start) {
    this.start = start % this.task.starts.length;
    this.robot.reset(this.task.starts[this.start]);
    this.policies[this.context].reset();
    Object.assign(this, { reward: 0, total: 0, steps: 0, terminated: false, truncated: false });
  }

  // Start an episode: by default the next start; context: "window" or "stream".
  reset({ start = this.start + 1, context = this.context, target = this.target } = {}) {
    return this.inTurn(() => {
      Object.assign(this, { context, target });
      this.begin(start);
    });
  }

  // `count` steps, or until the episode ends. Resolves to {total, steps, ended}.
  step(count = 1) {
    return this.inTurn(async () => {
      for (let i = 0; i < count && !this.ended; i++) await this.one();
      return { total: this.total, steps: this.steps, ended: this.ended };
    });
  }

  async one() {
    const seen = this.robot.observe();
    const action = await this.policies[this.context].act(seen, this.reward, this.target);
    const { reward, terminated } = this.robot.step(action);
    this.reward = reward;
    this.total += reward;
    this.steps += 1;
    this.terminated = terminated;
    this.truncated = this.steps >= (this.task.max_steps ?? Infinity);
  }

  get ended() {
    return this.terminated || this.truncated;
  }

  get milliseconds() {
    return this.policies[this.context].milliseconds;
  }
}
