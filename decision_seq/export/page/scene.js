// Draws a model's capsules and spheres above a chequered floor, with shadows, by WebGL alone.
// World: x forward, z up, metres. Matrices are column-major, as WebGL takes them.

const LIGHT = [0.35, -0.45, 1]; // towards the light
const RINGS = 8; // of a half sphere
const SECTORS = 24;

// A capsule is one mesh for every size: radius * normal + (0, 0, end * half length).
const BODY_VERTEX = `
  attribute vec3 normal; attribute float end;
  uniform mat4 camera; uniform mat3 turn; uniform vec3 place, light; uniform vec2 size;
  uniform float flat_;
  varying vec3 n;
  void main() {
    vec3 p = turn * (size.x * normal + vec3(0, 0, end * size.y)) + place;
    n = turn * normal;
    if (flat_ > 0.5) p = vec3(p.xy - light.xy * p.z / light.z, 0.002);  // its shadow
    gl_Position = camera * vec4(p, 1);
  }`;
const BODY_FRAGMENT = `
  precision highp float;
  uniform vec3 colour, light; uniform float flat_;
  varying vec3 n;
  void main() {
    float lit = 0.45 + 0.55 * max(0.0, dot(normalize(n), normalize(light)));
    gl_FragColor = vec4(flat_ > 0.5 ? colour : colour * lit, 1);
  }`;
const FLOOR_VERTEX = `
  attribute vec2 corner;
  uniform mat4 camera; uniform vec2 centre;
  varying vec2 p, away;
  void main() {
    away = corner; p = centre + corner;
    gl_Position = camera * vec4(p, 0, 1);
  }`;
const FLOOR_FRAGMENT = `
  precision highp float;
  uniform vec3 sky;
  varying vec2 p, away;
  void main() {
    float odd = mod(floor(p.x) + floor(p.y), 2.0);
    vec3 tile = mix(vec3(0.70, 0.74, 0.78), vec3(0.80, 0.83, 0.86), odd);
    gl_FragColor = vec4(mix(tile, sky, smoothstep(4.0, 18.0, length(away))), 1);
  }`;
const SKY = [0.9, 0.93, 0.96];
const SHADOW = [0.5, 0.54, 0.59];
const FLOOR = 20; // metres from its middle to its edge

export class Scene {
  // Throws where the browser has no WebGL. model: mujoco's MjModel
  constructor(canvas, mujoco, model) {
    const gl = canvas.getContext("webgl", { antialias: true });
    if (!gl) throw new Error("this browser has no WebGL, so nothing is drawn");
    this.gl = gl;
    this.canvas = canvas;
    this.geoms = drawable(mujoco, model);
    this.body = program(gl, BODY_VERTEX, BODY_FRAGMENT);
    this.floor = program(gl, FLOOR_VERTEX, FLOOR_FRAGMENT);
    const { vertices, triangles } = capsule();
    this.vertices = filled(gl, gl.ARRAY_BUFFER, vertices);
    this.triangles = filled(gl, gl.ELEMENT_ARRAY_BUFFER, triangles);
    this.count = triangles.length;
    const corners = [-1, -1, 1, -1, -1, 1, 1, 1].map((side) => side * FLOOR);
    this.corners = filled(gl, gl.ARRAY_BUFFER, new Float32Array(corners));
    gl.enable(gl.DEPTH_TEST);
  }

  // data: MjData as it stands; the camera goes along with body 1.
  draw(data) {
    const { gl, canvas } = this;
    const scale = Math.min(devicePixelRatio, 2);
    canvas.width = Math.round(canvas.clientWidth * scale);
    canvas.height = Math.round(canvas.clientHeight * scale);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(...SKY, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const x = data.xpos[3]; // xpos [bodies, 3]
    const camera = lookingAt([x + 0.9, -3.6, 1.5], [x, 0, 0.75], canvas.width / canvas.height);
    this.drawFloor(camera, x);
    this.drawGeoms(camera, data.geom_xpos, data.geom_xmat);
  }

  drawFloor(camera, x) {
    const { gl, floor } = this;
    gl.useProgram(floor.program);
    gl.uniformMatrix4fv(floor.at.camera, false, camera);
    gl.uniform2f(floor.at.centre, x, 0);
    gl.uniform3fv(floor.at.sky, SKY);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.corners);
    attribute(gl, floor, "corner", 2, 8, 0);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }

  // places: [geoms, 3]; turns: [geoms, 9], rows first
  drawGeoms(camera, places, turns) {
    const { gl, body } = this;
    gl.useProgram(body.program);
    gl.uniformMatrix4fv(body.at.camera, false, camera);
    gl.uniform3fv(body.at.light, LIGHT);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.vertices);
    attribute(gl, body, "normal", 3, 16, 0);
    attribute(gl, body, "end", 1, 16, 12);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.triangles);
    for (const { index, size, colour } of this.geoms) {
      const m = turns.subarray(9 * index, 9 * index + 9);
      const turn = [m[0], m[3], m[6], m[1], m[4], m[7], m[2], m[5], m[8]];
      gl.uniformMatrix3fv(body.at.turn, false, turn);
      gl.uniform3fv(body.at.place, places.subarray(3 * index, 3 * index + 3));
      gl.uniform2fv(body.at.size, size);
      for (const flat of [0, 1]) {
        gl.uniform1f(body.at.flat_, flat);
        gl.uniform3fv(body.at.colour, flat ? SHADOW : colour);
        gl.drawElements(gl.TRIANGLES, this.count, gl.UNSIGNED_SHORT, 0);
      }
    }
  }
}

// What can be drawn of a model: {index, size: [radius, half length], colour} of each.
function drawable(mujoco, model) {
  const { mjGEOM_CAPSULE, mjGEOM_SPHERE } = mujoco.mjtGeom;
  const found = [];
  model.geom_type.forEach((type, index) => {
    const capsule = type == mjGEOM_CAPSULE.value;
    if (!capsule && type != mjGEOM_SPHERE.value) return;
    const size = [model.geom_size[3 * index], capsule ? model.geom_size[3 * index + 1] : 0];
    found.push({ index, size, colour: model.geom_rgba.slice(4 * index, 4 * index + 3) });
  });
  return found;
}

// vertices [n, 4]: a sphere's normal, and the end it belongs to; both half spheres have an equator.
function capsule() {
  const vertices = [];
  const triangles = [];
  for (let ring = 0; ring < 2 * (RINGS + 1); ring++) {
    const end = ring <= RINGS ? -1 : 1;
    const latitude = ((ring <= RINGS ? ring - RINGS : ring - RINGS - 1) / RINGS) * (Math.PI / 2);
    for (let sector = 0; sector <= SECTORS; sector++) {
      const longitude = (sector / SECTORS) * 2 * Math.PI;
      const across = Math.cos(latitude);
      vertices.push(across * Math.cos(longitude), across * Math.sin(longitude));
      vertices.push(Math.sin(latitude), end);
      if (ring == 0 || sector == 0) continue;
      const [d, b] = [ring * (SECTORS + 1) + sector, (ring - 1) * (SECTORS + 1) + sector];
      triangles.push(b - 1, b, d - 1, b, d, d - 1);
    }
  }
  return { vertices: new Float32Array(vertices), triangles: new Uint16Array(triangles) };
}

// [16]: perspective times view, from `eye` to `target`, z up.
function lookingAt(eye, target, aspect) {
  const back = unit(eye.map((e, i) => e - target[i]));
  const right = unit(cross([0, 0, 1], back));
  const up = cross(back, right);
  const [near, far] = [0.1, 60];
  const focus = 1 / Math.tan(0.36 / Math.min(1, aspect)); // half the angle, wider when narrow
  const axes = [right.map((v) => (v * focus) / aspect), up.map((v) => v * focus)];
  const depth = [(far + near) / (near - far), (2 * far * near) / (near - far)];
  const rows = [
    [...axes[0], -dot(axes[0], eye)],
    [...axes[1], -dot(axes[1], eye)],
    [...back.map((v) => v * depth[0]), -dot(back, eye) * depth[0] + depth[1]],
    [...back.map((v) => -v), dot(back, eye)],
  ];
  return new Float32Array([0, 1, 2, 3].flatMap((column) => rows.map((row) => row[column])));
}

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const unit = (a) => a.map((v) => v / Math.sqrt(dot(a, a)));
const cross = (a, b) => [
  a[1] * b[2] - a[2] * b[1],
  a[2] * b[0] - a[0] * b[2],
  a[0] * b[1] - a[1] * b[0],
];

// {program, at: places of its uniforms by name}
function program(gl, vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const at = {};
  for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); i++) {
    const { name } = gl.getActiveUniform(made, i);
    at[name] = gl.getUniformLocation(made, name);
  }
  return { program: made, at };
}

function filled(gl, kind, values) {
  const buffer = gl.createBuffer();
  gl.bindBuffer(kind, buffer);
  gl.bufferData(kind, values, gl.STATIC_DRAW);
  return buffer;
}

function attribute(gl, { program }, name, numbers, stride, offset) {
  const place = gl.getAttribLocation(program, name);
  gl.enableVertexAttribArray(place);
  gl.vertexAttribPointer(place, numbers, gl.FLOAT, false, stride, offset);
}
