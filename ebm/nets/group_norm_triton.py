"""The GPU kernels of group norm, with or without SiLU, and of its first and second derivatives.

A program works on one group of channels of an image or, with channels last, on as many groups as fill a cache line (GROUPS).
It holds an array of channels and pixels, [ROWS, BLOCK], which moves along the P pixels two or three times: the first pass
reads memory, the others the cache. Sums run in float32, always in the same order. The formulas are those of
ebm/nets/group_norm_torch.py.
"""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(start, C, P: tl.constexpr, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr,
          BLOCK: tl.constexpr):
    """Where a program's numbers lie from pixel ``start`` on, [ROWS, BLOCK], and which of them there are."""
    image, first, row, there = channels(C, PER_GROUP, GROUPS, ROWS)
    pixel = start + tl.arange(0, BLOCK)[None, :]
    if LAST:
        at = image.to(tl.int64) * C * P + (pixel * C + (first + row))
    else:
        at = image.to(tl.int64) * C * P + ((first + row) * P + pixel)
    return at, there & (pixel < P)


@triton.jit
def channels(C, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr):
    """A program's image and first channel, its channels from there, [ROWS, 1], and which of them there are."""
    programs = C // (PER_GROUP * GROUPS)  # an image's
    row = tl.arange(0, ROWS)[:, None]
    first = tl.program_id(0) % programs * (PER_GROUP * GROUPS)
    return tl.program_id(0) // programs, first, row, row < PER_GROUP * GROUPS


@triton.jit
def read(numbers, at, there):
    return tl.load(numbers + at, mask=there, other=0).to(tl.float32)


@triton.jit
def coefficient(numbers, stride, C, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr):
    """Each channel's, [ROWS, 1]."""
    image, first, row, there = channels(C, PER_GROUP, GROUPS, ROWS)
    return read(numbers, image * stride + first + row, there)


@triton.jit
def keep(numbers, sums, C, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr):
    """Writes each channel's sum, [ROWS, 1]."""
    image, first, row, there = channels(C, PER_GROUP, GROUPS, ROWS)
    tl.store(numbers + image * C + first + row, sums, mask=there)


@triton.jit
def moment(moments, which, C, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr):
    """Where the mean (0) or 1/std (1) of each channel's group lies, [ROWS, 1]."""
    image, first, row, _there = channels(C, PER_GROUP, GROUPS, ROWS)
    return moments + 2 * ((image * C + first + row) // PER_GROUP) + which


@triton.jit
def line(weight, weight_stride, bias, bias_stride, moments, C, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr,
         ROWS: tl.constexpr):
    """Each channel's mean, 1/std and weight, and a and b in u = a x + b, [ROWS, 1] each."""
    _, _, _, real = channels(C, PER_GROUP, GROUPS, ROWS)
    mean = read(moment(moments, 0, C, PER_GROUP, GROUPS, ROWS), 0, real)
    rstd = read(moment(moments, 1, C, PER_GROUP, GROUPS, ROWS), 0, real)
    w = coefficient(weight, weight_stride, C, PER_GROUP, GROUPS, ROWS)
    a = w * rstd
    return mean, rstd, w, a, coefficient(bias, bias_stride, C, PER_GROUP, GROUPS, ROWS) - a * mean


@triton.jit
def per_group(sums, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr):
    """Sums over each group at each of its channels, of the channels' sums, [ROWS, 1]."""
    groups = tl.sum(tl.reshape(sums, (GROUPS, ROWS // GROUPS)), 1, keep_dims=True)
    return tl.reshape(tl.broadcast_to(groups, (GROUPS, ROWS // GROUPS)), (ROWS, 1))


@triton.jit
def slopes(u, SILU: tl.constexpr):
    """The first and the second derivative of silu, or of the identity."""
    if SILU:
        s = tl.sigmoid(u)
        slope = s * (1 - s)
        return s + u * slope, slope * (2 + u * (1 - 2 * s))
    else:
        return u * 0 + 1, u * 0


@triton.jit
def forward(
    x, weight, weight_stride, bias, bias_stride, y, moments, eps, C, P: tl.constexpr, PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr, LAST: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    total, squares = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, P, BLOCK):
        at, there = place(start, C, P, PER_GROUP, GROUPS, LAST, ROWS, BLOCK)
        total += read(x, at, there)
    mean = per_group(tl.sum(total, 1, keep_dims=True), PER_GROUP, GROUPS, ROWS) / (PER_GROUP * P)
    for start in range(0, P, BLOCK):
        at, there = place(start, C, P, PER_GROUP, GROUPS, LAST, ROWS, BLOCK)
        centred = tl.where(there, read(x, at, there) - mean, 0)
        squares += centred * centred
    variance = per_group(tl.sum(squares, 1, keep_dims=True), PER_GROUP, GROUPS, ROWS) / (PER_GROUP * P)
    rstd = 1 / tl.sqrt(variance + eps)
    _, _, row, real = channels(C, PER_GROUP, GROUPS, ROWS)
    tl.store(moment(moments, 0, C, PER_GROUP, GROUPS, ROWS), mean, mask=real & (row % PER_GROUP == 0))
    tl.store(moment(moments, 1, C, PER_GROUP, GROUPS, ROWS), rstd, mask=real & (row % PER_GROUP == 0))
    a = coefficient(weight, weight_stride, C, PER_GROUP, GROUPS, ROWS) * rstd
    b = coefficient(bias, bias_stride, C, PER_GROUP, GROUPS, ROWS) - a * mean
    for start in range(0, P, BLOCK):
        at, there = place(start, C, P, PER_GROUP, GROUPS, LAST, ROWS, BLOCK)
        u = a * read(x, at, there) + b
        if SILU:
            u = u * tl.sigmoid(u)
        tl.store(y + at, u.to(y.dtype.element_ty), mask=there)


@triton.jit
def backward(
    g, x, weight, weight_stride, bias, bias_stride, moments, around, dx, dweight, dbias, C, P: tl.constexpr,
    PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, LAST: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr
):
    mean, rstd, w, a, b = line(weight, weight_stride, bias, bias_stride, moments, C, PER_GROUP, GROUPS, ROWS)
    sum_1, sum_x = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, P, BLOCK):
        at, there = place(start, C, P, PER_GROUP, GROUPS, LAST, ROWS, BLOCK)
        numbers = read(x, at, there)
        first, _bend = slopes(a * numbers + b, SILU)
        du = read(g, at, there) * first
        sum_1 += du
        sum_x += du * (numbers - mean)
    db, dw = tl.sum(sum_1, 1, keep_dims=True), tl.sum(sum_x, 1, keep_dims=True) * rstd
    keep(dbias, db, C, PER_GROUP, GROUPS, ROWS)
    keep(dweight, dw, C, PER_GROUP, GROUPS, ROWS)
    on_x = -rstd * rstd * per_group(w * dw, PER_GROUP, GROUPS, ROWS) / (PER_GROUP * P)
    level = -rstd * per_group(w * db, PER_GROUP, GROUPS, ROWS) / (PER_GROUP * P) - on_x * mean
    for start in range(0, P, BLOCK):
        at, there = place(start, C, P, PER_GROUP, GROUPS, LAST, ROWS, BLOCK)
        numbers = read(x, at, there)
        first, _bend = slopes(a * numbers + b, SILU)
        result = a * (read(g, at, there) * first) + (on_x * numbers + level)
        if around is not None:
            result += read(around, at, there)
        tl.store(dx + at, result.to(dx.dtype.element_ty), mask=there)


@triton.jit
def second(
    g, x, vx, weight, weight_stride, bias, bias_stride, moments, vweight, vbias, dg, dx, dweight, dbias, C, P: tl.constexpr,
    PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, LAST: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr
):
    """t is how u moves as x, weight and bias move along vx, vweight and vbias; sums over pixels end in _1, and in _x if
    weighted by x̂."""
    mean, rstd, w, a, b = line(weight, weight_stride, bias, bias_stride, moments, C, PER_GROUP, GROUPS, ROWS)
    vw, vb = w * 0, w * 0
    if vweight is not None:
        vw += coefficient(vweight, C, C, PER_GROUP, GROUPS, ROWS)
    if vbias is not None:
        vb += coefficient(vbias, C, C, PER_GROUP, GROUPS, ROWS)
    sum_1, sum_x = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, P, BLOCK):
        at, there = place(start, C, P, PER_GROUP, GROUPS, LAST, ROWS, BLOCK)
        v = read(vx, at, there)
        sum_1 += v
        sum_x += v * (read(x, at, there) - mean)
    v_1, v_x = tl.sum(sum_1, 1, keep_dims=True), tl.sum(sum_x, 1, keep_dims=True) * rstd
    level = per_group(v_1, PER_GROUP, GROUPS, ROWS) / (PER_GROUP * P)
    along = per_group(v_x, PER_GROUP, GROUPS, ROWS) / (PER_GROUP * P)
    on_du = vw - a * along
    t_x, t_1 = on_du * rstd, vb - a * level - on_du * rstd * mean  # t = a vx + t_x x + t_1
    curved_1, curved_x = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    du_1, du_x = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    du_v = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, P, BLOCK):
        at, there = place(start, C, P, PER_GROUP, GROUPS, LAST, ROWS, BLOCK)
        numbers, v, gs = read(x, at, there), read(vx, at, there), read(g, at, there)
        first, bend = slopes(a * numbers + b, SILU)
        t, centred = a * v + (t_x * numbers + t_1), numbers - mean
        du, curved = gs * first, gs * bend * t
        tl.store(dg + at, (first * t).to(dg.dtype.element_ty), mask=there)
        curved_1 += curved
        curved_x += curved * centred
        du_1 += du
        du_x += du * centred
        du_v += du * v
    curved_1, curved_x = tl.sum(curved_1, 1, keep_dims=True), tl.sum(curved_x, 1, keep_dims=True) * rstd
    du_1, du_x = tl.sum(du_1, 1, keep_dims=True), tl.sum(du_x, 1, keep_dims=True) * rstd
    # ⟨du, t⟩ moves with weight by ⟨du, rstd P(vx)⟩; with x̂ by on_du and on_v, together with ⟨curved, u⟩; and with rstd.
    on_v = -rstd * per_group(w * du_x, PER_GROUP, GROUPS, ROWS) / (PER_GROUP * P)
    dw = curved_x + rstd * (tl.sum(du_v, 1, keep_dims=True) - level * du_1 - along * du_x)
    keep(dweight, dw, C, PER_GROUP, GROUPS, ROWS)
    keep(dbias, curved_1, C, PER_GROUP, GROUPS, ROWS)
    normal_1 = per_group(w * curved_1 + on_du * du_1 + on_v * v_1, PER_GROUP, GROUPS, ROWS) / (PER_GROUP * P)
    normal_x = per_group(w * dw + on_du * du_x + on_v * v_x, PER_GROUP, GROUPS, ROWS) / (PER_GROUP * P)
    x_x = -rstd * rstd * normal_x
    x_1 = -rstd * normal_1 - x_x * mean
    for start in range(0, P, BLOCK):
        at, there = place(start, C, P, PER_GROUP, GROUPS, LAST, ROWS, BLOCK)
        numbers, v, gs = read(x, at, there), read(vx, at, there), read(g, at, there)
        first, bend = slopes(a * numbers + b, SILU)
        t = a * v + (t_x * numbers + t_1)
        kept = w * (gs * bend * t) + on_du * (gs * first)
        result = rstd * (kept + on_v * v) + (x_x * numbers + x_1)
        tl.store(dx + at, result.to(dx.dtype.element_ty), mask=there)
