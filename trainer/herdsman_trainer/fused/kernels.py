"""The Triton kernels; `triton_ops` launches them. Accumulation is in float32, whatever the type of the data.

A table of three int32 tells, for every `UNIT` output columns of a group, which adapted projection they belong to (−1:
none), where in the Bs the values of its first column stand, counted from column 0 of the group, and how many outputs it
has: B is stored as (rank, outputs).
"""

import triton
import triton.language as tl


@triton.jit
def kept(key, first, site, threshold, BK: tl.constexpr):
    """Return which of BK columns from `first` on stay, for each key; see dropout.Dropout.kept, bit for bit."""
    pair = ((first >> 1) + tl.arange(0, BK // 2)).to(tl.uint32)
    h = key[:, None].to(tl.uint32) ^ (pair * 0x9E3779B1 + site.to(tl.uint32))[None, :]
    h = h * 0x85EBCA6B
    h = h ^ (h >> 13)
    h = h * 0xC2B2AE35
    h = h ^ (h >> 16)
    both = tl.join(h & 0xFFFF, h >> 16)
    return tl.reshape(both, (key.shape[0], BK)).to(tl.int32) >= threshold


@triton.jit
def rms_norm(h, weight, x, inverse, width, epsilon, BLOCK: tl.constexpr):
    """x = weight · h / root mean square; one row a program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    values = tl.load(h + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, 0) / width + epsilon)
    tl.store(inverse + row, scale)
    normed = (values * scale).to(x.dtype.element_ty)
    tl.store(x + row * width + columns, normed * tl.load(weight + columns, mask=inside, other=0.0), mask=inside)


@triton.jit
def rms_norm_backward(dx, h, weight, inverse, residual, out, width, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of h through the norm, plus that of the residual stream; one row a program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    place = row * width + columns
    scale = tl.load(inverse + row)
    normed = tl.load(h + place, mask=inside, other=0.0).to(tl.float32) * scale
    weighted = tl.load(dx + place, mask=inside, other=0.0).to(tl.float32)
    weighted *= tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(weighted * normed, 0) / width
    result = scale * (weighted - normed * mean)
    if RESIDUAL:
        result += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["site", "threshold", "tokens"])
def thin(
    x, a, out, keys, tokens, width, rank: tl.constexpr, scale, keep_scale, site, threshold,
    DROPOUT: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, RANK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """out (tokens, rank) += scale · dropout(x) (tokens, width) · aᵀ; a program sums STEPS · BK of the width."""
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    ranks = tl.program_id(2) * RANK + tl.arange(0, RANK)
    here = rows < tokens
    total = tl.zeros((BT, RANK), tl.float32)
    key = rows
    if DROPOUT:
        key = tl.load(keys + rows, mask=here, other=0)
    for step in range(STEPS):
        first = (tl.program_id(1) * STEPS + step) * BK
        columns = first + tl.arange(0, BK)
        inside = columns < width
        values = tl.load(
            x + rows.to(tl.int64)[:, None] * width + columns[None, :], mask=here[:, None] & inside[None, :], other=0.0
        )
        if DROPOUT:
            stays = kept(key, first, site, threshold, BK)
            values = tl.where(stays, values * keep_scale, 0.0).to(x.dtype.element_ty)
        factor = tl.load(
            a + ranks[:, None] * width + columns[None, :], mask=(ranks < rank)[:, None] & inside[None, :], other=0.0
        )
        total = tl.dot(values, tl.trans(factor), total)
    tl.atomic_add(
        out + rows[:, None] * rank + ranks[None, :], total * scale, mask=here[:, None] & (ranks < rank)[None, :]
    )


@triton.jit(do_not_specialize=["site", "threshold", "tokens"])
def down_backward(
    x, dxa, grad_a, a, dx, keys, weight, inverse, tokens, width, rank: tl.constexpr, keep_scale, site, threshold,
    DROPOUT: tl.constexpr, NORM: tl.constexpr, INPUT: tl.constexpr,
    BT: tl.constexpr, BX: tl.constexpr, RANK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """grad_a (rank, width) += dxaᵀ · dropout(x) over all tokens, in SPLIT parts; dx += dropout(dxa · a) with INPUT.

    With NORM, x is normed first: weight · x · inverse. Without INPUT the third index of a program is its part of the
    ranks, and `dx` is left alone.
    """
    first = tl.program_id(0) * BX
    columns = first + tl.arange(0, BX)
    ranks = tl.program_id(2) * RANK + tl.arange(0, RANK)
    inside = columns < width
    matrix = (ranks < rank)[:, None] & inside[None, :]
    if NORM:
        factors = tl.load(weight + columns, mask=inside, other=0.0)[None, :]
    if INPUT:
        right = tl.load(a + ranks[:, None] * width + columns[None, :], mask=matrix, other=0.0)
    total = tl.zeros((RANK, BX), tl.float32)
    for start in range(tl.program_id(1) * BT, tokens, BT * SPLIT):
        rows = start + tl.arange(0, BT)
        here = rows < tokens
        mask = here[:, None] & inside[None, :]
        place = rows.to(tl.int64)[:, None] * width + columns[None, :]
        values = tl.load(x + place, mask=mask, other=0.0)
        left = tl.load(
            dxa + rows[:, None] * rank + ranks[None, :], mask=here[:, None] & (ranks < rank)[None, :], other=0.0
        ).to(x.dtype.element_ty)
        if NORM:
            scale = tl.load(inverse + rows, mask=here, other=0.0)[:, None]
            values = (values.to(tl.float32) * scale).to(x.dtype.element_ty) * factors
        if DROPOUT:
            stays = kept(tl.load(keys + rows, mask=here, other=0), first, site, threshold, BX)
            values = tl.where(stays, values * keep_scale, 0.0).to(x.dtype.element_ty)
        total = tl.dot(tl.trans(left), values, total)
        if INPUT:
            through = tl.dot(left, right)
            if DROPOUT:
                through = tl.where(stays, through * keep_scale, 0.0)
            through += tl.load(dx + place, mask=mask, other=0.0).to(tl.float32)
            tl.store(dx + place, through.to(dx.dtype.element_ty), mask=mask)
    tl.atomic_add(grad_a + ranks[:, None] * width + columns[None, :], total, mask=matrix)


@triton.jit(do_not_specialize=["tokens"])
def up_backward(
    dy, xa, grad_b, b, dxa, table, tokens, width, xa_width: tl.constexpr, rank: tl.constexpr, scale,
    UNIT: tl.constexpr, BT: tl.constexpr, BX: tl.constexpr, RANK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """grad_b += xaᵀ · dy over all tokens, in SPLIT parts; dxa += scale · dy · bᵀ, for the projection of the columns."""
    first = tl.program_id(0) * BX
    entry = table + 3 * (first // UNIT)
    index = tl.load(entry)
    if index < 0:
        return
    offset, outputs = tl.load(entry + 1), tl.load(entry + 2)
    columns = first + tl.arange(0, BX)
    ranks = tl.arange(0, RANK)
    inside, low = columns < width, ranks < rank
    matrix = low[:, None] & inside[None, :]
    own = offset + ranks[:, None] * outputs + columns[None, :]
    right = tl.load(b + own, mask=matrix, other=0.0)
    total = tl.zeros((RANK, BX), tl.float32)
    for start in range(tl.program_id(1) * BT, tokens, BT * SPLIT):
        rows = start + tl.arange(0, BT)
        here = rows < tokens
        values = tl.load(
            dy + rows.to(tl.int64)[:, None] * width + columns[None, :], mask=here[:, None] & inside[None, :], other=0.0
        )
        beside = rows[:, None] * xa_width + index * rank + ranks[None, :]
        left = tl.load(xa + beside, mask=here[:, None] & low[None, :], other=0.0).to(dy.dtype.element_ty)
        total = tl.dot(tl.trans(left), values, total)
        tl.atomic_add(dxa + beside, tl.dot(values, tl.trans(right)) * scale, mask=here[:, None] & low[None, :])
    tl.atomic_add(grad_b + own, total, mask=matrix)


@triton.jit(do_not_specialize=["site", "threshold", "tokens"])
def widen(
    y, xa, a, residual, keys, tokens, width, rank: tl.constexpr, keep_scale, site, threshold,
    DROPOUT: tl.constexpr, RESIDUAL: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """y (tokens, width) += dropout(xa (tokens, rank) · a (rank, width)) + residual, in place."""
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    first = tl.program_id(1) * BK
    columns = first + tl.arange(0, BK)
    here, inside = rows < tokens, columns < width
    total = tl.zeros((BT, BK), tl.float32)
    for begin in tl.static_range(0, rank, RANK):
        ranks = begin + tl.arange(0, RANK)
        left = tl.load(
            xa + rows[:, None] * rank + ranks[None, :], mask=here[:, None] & (ranks < rank)[None, :], other=0.0
        )
        right = tl.load(
            a + ranks[:, None] * width + columns[None, :], mask=(ranks < rank)[:, None] & inside[None, :], other=0.0
        )
        total = tl.dot(left.to(y.dtype.element_ty), right, total)
    if DROPOUT:
        total = tl.where(
            kept(tl.load(keys + rows, mask=here, other=0), first, site, threshold, BK), total * keep_scale, 0.0
        )
    place = rows.to(tl.int64)[:, None] * width + columns[None, :]
    mask = here[:, None] & inside[None, :]
    total += tl.load(y + place, mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        total += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _plus_projected(
    values, xa, b, rows, columns, here, inside, xa_width: tl.constexpr, outputs, rank: tl.constexpr,
    RANK: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """Return values (rows, columns) + xa · b: with FEW ranks one after the other, else by the matrix units."""
    if FEW:
        for number in tl.static_range(rank):
            left = tl.load(xa + rows * xa_width + number, mask=here, other=0.0)
            right = tl.load(b + number * outputs + columns, mask=inside, other=0.0).to(tl.float32)
            values += left[:, None] * right[None, :]
    else:
        ranks = tl.arange(0, RANK)
        low = ranks < rank
        left = tl.load(xa + rows[:, None] * xa_width + ranks[None, :], mask=here[:, None] & low[None, :], other=0.0)
        right = tl.load(b + ranks[:, None] * outputs + columns[None, :], mask=low[:, None] & inside[None, :], other=0.0)
        values = tl.dot(left.to(b.dtype.element_ty), right, values)
    return values


@triton.jit(do_not_specialize=["tokens"])
def qkv_up_rotate(
    qkv, xa, b, table, cos, sin, tokens, width, xa_width: tl.constexpr, rank: tl.constexpr, rotated, heads,
    LORA: tl.constexpr, UNIT: tl.constexpr, SIZE: tl.constexpr, BT: tl.constexpr, RANK: tl.constexpr,
    FEW: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Adds B·xa to HEADS heads of BT tokens and rotates them, in place."""
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    half = tl.arange(0, SIZE // 2)
    all_in = half < SIZE
    here = rows < tokens
    mask = here[:, None] & all_in[None, :]
    c = tl.load(cos + rows[:, None] * SIZE + half[None, :], mask=mask, other=0.0)
    s = tl.load(sin + rows[:, None] * SIZE + half[None, :], mask=mask, other=0.0)
    for head in range(tl.program_id(1) * HEADS, tl.minimum(tl.program_id(1) * HEADS + HEADS, heads)):
        place = qkv + rows.to(tl.int64)[:, None] * width + head * SIZE + half[None, :]
        one = tl.load(place, mask=mask, other=0.0).to(tl.float32)
        two = tl.load(place + SIZE // 2, mask=mask, other=0.0).to(tl.float32)
        if LORA:
            entry = table + 3 * ((head * SIZE) // UNIT)
            index = tl.load(entry)
            if index >= 0:
                own, outputs = b + tl.load(entry + 1) + head * SIZE, tl.load(entry + 2)
                left = xa + index * rank
                one = _plus_projected(one, left, own, rows, half, here, all_in, xa_width, outputs, rank, RANK, FEW)
                own += SIZE // 2
                two = _plus_projected(two, left, own, rows, half, here, all_in, xa_width, outputs, rank, RANK, FEW)
        if head < rotated:
            turned = one * c - two * s
            two = two * c + one * s
            one = turned
        tl.store(place, one.to(qkv.dtype.element_ty), mask=mask)
        tl.store(place + SIZE // 2, two.to(qkv.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def qkv_rotate_backward(
    dq, dk, dv, dqkv, cos, sin, tokens, width, sq_t, sq_h, sk_t, sk_h, sv_t, sv_h, heads, kv_heads,
    SIZE: tl.constexpr, BT: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Undoes the rotation of the gradients of HEADS heads and writes them beside each other."""
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    long_rows = rows.to(tl.int64)[:, None]
    half = tl.arange(0, SIZE // 2)
    mask = (rows < tokens)[:, None] & (half < SIZE)[None, :]
    c = tl.load(cos + rows[:, None] * SIZE + half[None, :], mask=mask, other=0.0)
    s = tl.load(sin + rows[:, None] * SIZE + half[None, :], mask=mask, other=0.0)
    every = heads + 2 * kv_heads
    for head in range(tl.program_id(1) * HEADS, tl.minimum(tl.program_id(1) * HEADS + HEADS, every)):
        if head < heads:
            source = dq + long_rows * sq_t + head * sq_h
        elif head < heads + kv_heads:
            source = dk + long_rows * sk_t + (head - heads) * sk_h
        else:
            source = dv + long_rows * sv_t + (head - heads - kv_heads) * sv_h
        source += half[None, :]
        one = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        two = tl.load(source + SIZE // 2, mask=mask, other=0.0).to(tl.float32)
        if head < heads + kv_heads:
            turned = one * c + two * s
            two = two * c - one * s
            one = turned
        place = dqkv + long_rows * width + head * SIZE + half[None, :]
        tl.store(place, one.to(dqkv.dtype.element_ty), mask=mask)
        tl.store(place + SIZE // 2, two.to(dqkv.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def swiglu(
    gate_up, act, xa, b, table, tokens, width, xa_width: tl.constexpr, rank: tl.constexpr,
    LORA: tl.constexpr, UNIT: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """act = silu(gate)·up after LoRA was added to both, in place."""
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    columns = tl.program_id(1) * BK + tl.arange(0, BK)
    here, inside = rows < tokens, columns < width
    mask = here[:, None] & inside[None, :]
    long_rows = rows.to(tl.int64)[:, None]
    place = gate_up + long_rows * (2 * width) + columns[None, :]
    gate = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(place + width, mask=mask, other=0.0).to(tl.float32)
    if LORA:
        up_entry = table + 3 * (width // UNIT)
        gate_index, up_index = tl.load(table), tl.load(up_entry)
        if gate_index >= 0:
            own = b + tl.load(table + 1)
            left = xa + gate_index * rank
            gate = _plus_projected(gate, left, own, rows, columns, here, inside, xa_width, width, rank, RANK, False)
        if up_index >= 0:
            own = b + tl.load(up_entry + 1) + width
            left = xa + up_index * rank
            up = _plus_projected(up, left, own, rows, columns, here, inside, xa_width, width, rank, RANK, False)
        rounded_gate, rounded_up = gate.to(act.dtype.element_ty), up.to(act.dtype.element_ty)
        tl.store(place, rounded_gate, mask=mask)
        tl.store(place + width, rounded_up, mask=mask)
        gate, up = rounded_gate.to(tl.float32), rounded_up.to(tl.float32)
    result = (gate * tl.sigmoid(gate) * up).to(act.dtype.element_ty)
    tl.store(act + long_rows * width + columns[None, :], result, mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def swiglu_backward(dact, gate_up, tokens, width, BT: tl.constexpr, BK: tl.constexpr):
    """Puts the gradients of gate and up in their places."""
    rows = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)[:, None]
    columns = (tl.program_id(1) * BK + tl.arange(0, BK))[None, :]
    mask = (rows < tokens) & (columns < width)
    place = gate_up + rows * (2 * width) + columns
    gate = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(place + width, mask=mask, other=0.0).to(tl.float32)
    gradient = tl.load(dact + rows * width + columns, mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    tl.store(place + width, (gradient * gate * sigmoid).to(gate_up.dtype.element_ty), mask=mask)
    dgate = gradient * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(place, dgate.to(gate_up.dtype.element_ty), mask=mask)


@triton.jit
def cross_entropy(logits, labels, losses, scale, vocabulary, width, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    """losses = −log softmax at the labels; with GRADIENT logits become scale · (softmax − one-hot); a row a program."""
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * width
    label = tl.load(labels + row)
    highest = -float("inf")
    total = 0.0
    for begin in range(0, vocabulary, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        values = tl.load(line + columns, mask=columns < vocabulary, other=-float("inf")).to(tl.float32)
        top = tl.maximum(highest, tl.max(values, 0))
        total = total * tl.exp(highest - top) + tl.sum(tl.exp(values - top), 0)
        highest = top
    log_total = highest + tl.log(total)
    tl.store(losses + row, log_total - tl.load(line + label).to(tl.float32))
    if GRADIENT:
        factor = tl.load(scale)
        tl.debug_barrier()  # every thread has read the label's logit before it is overwritten
        for begin in range(0, width, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            inside = columns < vocabulary
            values = tl.load(line + columns, mask=inside, other=-float("inf")).to(tl.float32)
            gradient = tl.exp(values - log_total) - tl.where(columns == label, 1.0, 0.0)
            gradient *= factor
            tl.store(line + columns, gradient.to(logits.dtype.element_ty), mask=columns < width)


@triton.jit
def nf4_values(codes, values, scales, out, count, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    """Two 4-bit codes of each byte become values, times the scale of their block."""
    pairs = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    inside = pairs < count
    both = tl.load(codes + pairs, mask=inside, other=0).to(tl.int32)
    scale = tl.load(scales + pairs * 2 // BLOCK, mask=inside, other=0.0)
    low = tl.load(values + (both & 15)) * scale
    high = tl.load(values + (both >> 4)) * scale
    joined = tl.reshape(tl.join(low, high), (2 * PAIRS,))
    places = tl.program_id(0).to(tl.int64) * 2 * PAIRS + tl.arange(0, 2 * PAIRS)
    tl.store(out + places, joined.to(out.dtype.element_ty), mask=places < 2 * count)


@triton.jit
def fp8_rows(x, out, scales, width, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    """One row in fp8, its largest value scaled to the largest of fp8."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    values = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), 0) / LARGEST, 1e-30)
    tl.store(scales + row, scale)
    tl.store(out + row * width + columns, (values / scale).to(out.dtype.element_ty), mask=inside)
