// A gymnasium robot in MuJoCo's WebAssembly build. Observations, rewards and ends are gymnasium's
// (Hopper, Walker2d, HalfCheetah); `task` (demo.json) holds their numbers, null where infinite.

const PUSH = -1.0; // m/s that a push would give the whole robot, along x

export class Robot {
  // mujoco: the module; xml: the model, text; task: demo.json
  constructor(mujoco, xml, task) {
    this.mujoco = mujoco;
    this.task = task;
    this.model = mujoco.MjModel.from_xml_string(xml);
    this.data = new mujoco.MjData(this.model);
    this.mass = this.model.body_mass.reduce((sum, mass) => sum + mass, 0); // kg
    this.reset(task.starts[0]);
  }

  // Begin an episode at `start` = {qpos: [nq], qvel: [nv]}.
  reset(start) {
    this.mujoco.mj_resetData(this.model, this.data);
    this.data.qpos.set(start.qpos);
    this.data.qvel.set(start.qvel);
    this.mujoco.mj_forward(this.model, this.data);
    this.pushed = false;
  }

  // [S] float32: qpos without how far the robot has come, then qvel, clipped.
  observe() {
    const limit = this.task.velocity_limit ?? Infinity;
    const qvel = Array.from(this.data.qvel, (v) => Math.min(Math.max(v, -limit), limit));
    return Float32Array.from([...this.data.qpos.slice(this.task.hidden_positions), ...qvel]);
  }

  // One step of the environment, frame_skip of the simulator. action: [A].
  // reward = w_forward * dx/dt + healthy_reward * paid - w_control * sum(action^2)
  step(action) {
    const { task, model, data } = this;
    const before = data.qpos[0];
    data.ctrl.set(action);
    // forces and torques are [bodies, 6]; body 1 is the torso
    data.xfrc_applied[6] = this.pushed ? (PUSH * this.mass) / task.dt : 0; // N along x
    this.pushed = false;
    for (let i = 0; i < task.frame_skip; i++) this.mujoco.mj_step(model, data);
    const healthy = this.healthy();
    const paid = healthy || (task.terminate_when_unhealthy && task.paid_while_running);
    const forward = task.forward_reward_weight * ((data.qpos[0] - before) / task.dt);
    const control = task.ctrl_cost_weight * action.reduce((sum, a) => sum + a * a, 0);
    return {
      reward: forward + (paid ? task.healthy_reward : 0) - control,
      terminated: task.terminate_when_unhealthy && !healthy,
    };
  }

  // Whether every bounded number of (qpos, qvel) is inside its bounds.
  healthy() {
    const state = [...this.data.qpos, ...this.data.qvel];
    return this.task.healthy_bounds.every(
      ([index, low, high]) => (low ?? -Infinity) < state[index] && state[index] < (high ?? Infinity),
    );
  }

  // Push the torso during the next step: an impulse of PUSH * mass in N s.
  push() {
    this.pushed = true;
  }
}
