"""Triton kernels of the selective scan and the causal convolution; triton_scan.py launches them.

Imported only where Triton is there. A program works on one row of the batch and one block of
channels. Every `rows` rows have weights of their own: seeds that are trained at once. Names as in
scan.c; every matrix [batch, length, channels] has a stride for its row of the
batch (`_b`) and for time (`_t`), and unit stride along channels.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def scan_forward(
    u, dt, A, B, C, D, z, start, y, checkpoints, final,
    length, width, states, chunk, rows,
    u_b, u_t, dt_b, dt_t, B_b, B_t, C_b, C_t, z_b, z_t,
    GATED: tl.constexpr, KEEP: tl.constexpr, STREAM: tl.constexpr,
    BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """All steps. KEEP: the state before every `chunk` steps goes to `checkpoints`
    [batch, chunks, width, states]. STREAM: begin with `start`, leave the last state in `final`,
    both [batch, width, states]."""
    b = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    here, some = e < width, n < states
    inside = here[:, None] & some[None, :]
    tile = e[:, None] * states + n[None, :]
    lane = b * width * states + tile
    rate = tl.load(A + b // rows * width * states + tile, mask=inside, other=0.0)
    skip = tl.load(D + b // rows * width + e, mask=here, other=0.0)
    h = tl.zeros([BLOCK, N], tl.float32)
    if STREAM:
        h = tl.load(start + lane, mask=inside, other=0.0)
    u += b * u_b + e
    dt += b * dt_b + e
    z += b * z_b + e
    B += b * B_b + n
    C += b * C_b + n
    y += b * length * width + e
    checkpoints += b * tl.cdiv(length, chunk) * width * states + tile
    for t in range(length):
        if KEEP:  # noqa: SIM102  (a constant: the other condition is then not compiled)
            if t % chunk == 0:
                tl.store(checkpoints, h, mask=inside)
                checkpoints += width * states
        dt_t_ = tl.load(dt, mask=here, other=0.0)
        u_t_ = tl.load(u, mask=here, other=0.0)
        B_t_ = tl.load(B, mask=some, other=0.0)
        C_t_ = tl.load(C, mask=some, other=0.0)
        h = tl.exp(dt_t_[:, None] * rate) * h + (dt_t_ * u_t_)[:, None] * B_t_[None, :]
        out = tl.sum(h * C_t_[None, :], axis=1) + skip * u_t_
        if GATED:
            gate = tl.load(z, mask=here, other=0.0)
            out *= gate * tl.sigmoid(gate)
        tl.store(y, out, mask=here)
        u += u_t
        dt += dt_t
        z += z_t
        B += B_t
        C += C_t
        y += width
    if STREAM:
        tl.store(final + lane, h, mask=inside)


@triton.jit
def scan_backward(
    dy, u, dt, A, B, C, D, z, checkpoints, scratch,
    du, ddt, dA, dB, dC, dD, dz,
    length, width, states, chunk, rows,
    u_b, u_t, dt_b, dt_t, B_b, B_t, C_b, C_t, z_b, z_t,
    GATED: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Chunks from the last to the first: replay one from its checkpoint, keeping its states in
    `scratch` [batch, chunk, width, states], then run the adjoint recurrence back through it:

        dh_t = C_t dsum_t + decay_{t+1} dh_{t+1}

    dy, du, ddt, dz are contiguous. What several programs contribute to is kept apart, to be summed
    in a fixed order: dB, dC [blocks, batch, length, states]; dA [batch, width, states]; dD [batch,
    width].
    """
    b = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    e = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    here, some = e < width, n < states
    inside = here[:, None] & some[None, :]
    size = width * states
    tile = e[:, None] * states + n[None, :]
    rate = tl.load(A + b // rows * width * states + tile, mask=inside, other=0.0)
    skip = tl.load(D + b // rows * width + e, mask=here, other=0.0)
    chunks = tl.cdiv(length, chunk)
    u += b * u_b + e
    dt += b * dt_b + e
    z += b * z_b + e
    B += b * B_b + n
    C += b * C_b + n
    row = b * length * width + e  # of dy and of the gradients beside it
    part = (block * tl.num_programs(0) + b) * length * states + n
    checkpoints += b * chunks * size + tile
    scratch += b * chunk * size + tile
    dh = tl.zeros([BLOCK, N], tl.float32)
    dA_sum = tl.zeros([BLOCK, N], tl.float32)
    dD_sum = tl.zeros([BLOCK], tl.float32)
    for i in range(chunks):
        first = (chunks - 1 - i) * chunk
        steps = tl.minimum(chunk, length - first)
        h = tl.load(checkpoints + (chunks - 1 - i) * size, mask=inside, other=0.0)
        for t in range(steps):
            tl.store(scratch + t * size, h, mask=inside)
            at = (first + t).to(tl.int64)
            dt_t_ = tl.load(dt + at * dt_t, mask=here, other=0.0)
            x = dt_t_ * tl.load(u + at * u_t, mask=here, other=0.0)
            B_t_ = tl.load(B + at * B_t, mask=some, other=0.0)
            h = tl.exp(dt_t_[:, None] * rate) * h + x[:, None] * B_t_[None, :]
        tl.debug_barrier()  # another thread may read what this one wrote
        for j in range(steps):
            t = steps - 1 - j
            at = (first + t).to(tl.int64)
            before = tl.load(scratch + t * size, mask=inside, other=0.0)
            dt_t_ = tl.load(dt + at * dt_t, mask=here, other=0.0)
            u_t_ = tl.load(u + at * u_t, mask=here, other=0.0)
            B_t_ = tl.load(B + at * B_t, mask=some, other=0.0)
            C_t_ = tl.load(C + at * C_t, mask=some, other=0.0)
            dsum = tl.load(dy + row + at * width, mask=here, other=0.0)
            if GATED:
                gate = tl.load(z + at * z_t, mask=here, other=0.0)
                open_ = tl.sigmoid(gate)
                out = tl.sum(h * C_t_[None, :], axis=1) + skip * u_t_
                slope = open_ * (1.0 + gate * (1.0 - open_))
                tl.store(dz + row + at * width, dsum * slope * out, mask=here)
                dsum *= gate * open_
            dh += dsum[:, None] * C_t_[None, :]
            x = dt_t_ * u_t_
            tl.store(dB + part + at * states, tl.sum(dh * x[:, None], axis=0), mask=some)
            tl.store(dC + part + at * states, tl.sum(h * dsum[:, None], axis=0), mask=some)
            dx = tl.sum(dh * B_t_[None, :], axis=1)
            dh *= tl.exp(dt_t_[:, None] * rate)
            drate = dh * before  # dL/d(dt A)
            dA_sum += drate * dt_t_[:, None]
            dD_sum += dsum * u_t_
            tl.store(du + row + at * width, dx * dt_t_ + dsum * skip, mask=here)
            tl.store(ddt + row + at * width, dx * u_t_ + tl.sum(drate * rate, axis=1), mask=here)
            h = before
        tl.debug_barrier()
    tl.store(dA + b * size + tile, dA_sum, mask=inside)
    tl.store(dD + b * width + e, dD_sum, mask=here)


@triton.jit
def conv_sum(x, weight, bias, t, e, here, length, x_t, TAPS: tl.constexpr):
    """bias + sum of the taps at steps t, [steps, channels]; x at its row of the batch."""
    total = tl.zeros([t.shape[0], e.shape[0]], tl.float32)
    total += tl.load(bias + e, mask=here, other=0.0)[None, :]
    for tap in tl.static_range(TAPS):
        from_ = t + (tap + 1 - TAPS)
        seen = ((from_ >= 0) & (from_ < length))[:, None] & here[None, :]
        w = tl.load(weight + e * TAPS + tap, mask=here, other=0.0)
        at = from_[:, None].to(tl.int64) * x_t + e[None, :]
        total += tl.load(x + at, mask=seen, other=0.0) * w[None, :]
    return total


@triton.jit
def conv_forward(
    x, weight, bias, y, length, width, rows, x_b, x_t,
    TAPS: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """STEPS steps of BLOCK channels; y is contiguous."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * STEPS + tl.arange(0, STEPS)
    e = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    weight += b // rows * width * TAPS
    bias += b // rows * width
    total = conv_sum(x + b * x_b, weight, bias, t, e, e < width, length, x_t, TAPS)
    inside = (t < length)[:, None] & (e < width)[None, :]
    at = (b * length + t)[:, None] * width + e[None, :]
    tl.store(y + at, total * tl.sigmoid(total), mask=inside)


@triton.jit
def conv_backward(
    dy, x, weight, bias, dx, dweight, length, width, rows, x_b, x_t,
    TAPS: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum is computed anew at each step and the TAPS - 1 after it, which met the same input.

    dweight: [batch * blocks of steps, TAPS + 1, width], the last row for the bias.
    """
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * STEPS + tl.arange(0, STEPS)
    e = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    here = e < width
    weight += b // rows * width * TAPS
    bias += b // rows * width
    x += b * x_b
    part = (b * tl.num_programs(1) + tl.program_id(1)) * (TAPS + 1) * width
    total_dx = tl.zeros([STEPS, BLOCK], tl.float32)
    for later in tl.static_range(TAPS):
        s = t + later
        inside = (s < length)[:, None] & here[None, :]
        total = conv_sum(x, weight, bias, s, e, here, length, x_t, TAPS)
        open_ = tl.sigmoid(total)
        at = (b * length + s)[:, None] * width + e[None, :]
        grad = tl.load(dy + at, mask=inside, other=0.0) * open_ * (1.0 + total * (1.0 - open_))
        w = tl.load(weight + e * TAPS + (TAPS - 1 - later), mask=here, other=0.0)
        total_dx += grad * w[None, :]
        if later == 0:
            for tap in tl.static_range(TAPS):
                from_ = t + (tap + 1 - TAPS)
                seen = ((from_ >= 0) & (from_ < length))[:, None] & here[None, :]
                x_at = from_[:, None].to(tl.int64) * x_t + e[None, :]
                met = tl.load(x + x_at, mask=seen, other=0.0)
                tl.store(dweight + part + tap * width + e, tl.sum(met * grad, axis=0), mask=here)
            tl.store(dweight + part + TAPS * width + e, tl.sum(grad, axis=0), mask=here)
    at = (b * length + t)[:, None] * width + e[None, :]
    tl.store(dx + at, total_dx, mask=(t < length)[:, None] & here[None, :])
