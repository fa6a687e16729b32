"""Shapeshifter Networks, literally: one number of a weight at a time, from METHOD's words.

A layer of n numbers in the order (O, *k, I) reads a bank b of P numbers, which wraps.
"""

from __future__ import annotations

import math

import torch


def size(shape):
    return math.prod(shape)


def windows(shape, bank_size, most):
    """K = clamp(floor(P / n), 1, most)."""
    return min(max(bank_size // size(shape), 1), most)


def smaller(shape, room):
    """(round(p O), round(p I) k) of the first p = 0.95, 0.90, ... that fits."""
    out, inner, *kernel = shape
    k = math.prod(kernel)
    for step in range(1, 20):
        p = round(1 - 0.05 * step, 2)
        rows, columns = max(1, round(p * out)), max(1, round(p * inner)) * k
        if rows * columns <= room:
            return rows, columns
    return 1, k


def bilinear(matrix, rows, columns):
    """Interpolation with half-pixel centres, one number at a time."""
    height, width = matrix.shape

    def at(place, full, small):
        source = max((place + 0.5) * small / full - 0.5, 0.0)
        low = min(int(source), small - 1)
        return low, min(low + 1, small - 1), source - low

    numbers = []
    for row in range(rows):
        top, bottom, down = at(row, rows, height)
        for column in range(columns):
            left, right, along = at(column, columns, width)
            upper = (1 - along) * matrix[top, left] + along * matrix[top, right]
            lower = (1 - along) * matrix[bottom, left] + along * matrix[bottom, right]
            numbers.append((1 - down) * upper + down * lower)
    return torch.stack(numbers)


def weights(shapes, bank, options, alphas, tiles=None, masks=None, mask_window=0):
    """The weights of a group's layers.

    Args:
        shapes: (O, I, *k) of each layer.
        bank: (P,).
        options: combine, upsample, windows, templates.
        alphas: The coefficients (K,) of each layer, as they combine; None where tiles are mixed.
        tiles: (m, 2) of each layer that is larger than the bank, with up-sampling ``wavg``.
        masks: Of each layer that is larger than the bank, with up-sampling ``mask``.
        mask_window: Numbers that one number of a mask is for.
    """
    total = len(bank)
    start, made = 0, []
    for index, shape in enumerate(shapes):
        n = size(shape)
        room = total // options.templates if options.templates else total
        count = options.templates or windows(shape, total, options.windows)
        read = n
        if n > room and options.upsample == "inter":
            read = math.prod(smaller(shape, room))
        elif n > room:
            read = room
        stride = room if options.templates else read
        if n > room and options.upsample == "wavg":
            half = total // 2
            flat = [
                tiles[index][j // half, 0] * bank[(start + j % half) % total]
                + tiles[index][j // half, 1] * bank[(start + half + j % half) % total]
                for j in range(n)
            ]
            start = (start + 2 * half) % total
            made.append(shaped(torch.stack(flat), shape))
            continue
        combined = torch.stack(
            [sum(alphas[index][k] * bank[(start + k * stride + j) % total] for k in range(count)) for j in range(read)]
        )
        if n <= room:
            flat = combined
        elif options.upsample == "inter":
            rows, columns = smaller(shape, room)
            flat = bilinear(combined.reshape(rows, columns), shape[0], n // shape[0])
        else:
            flat = torch.stack([combined[j % room] for j in range(n)])
            if options.upsample == "mask":
                factors = [
                    masks[index][(j - room) // mask_window] if j >= room else bank.new_ones(()) for j in range(n)
                ]
                flat = flat * torch.stack(factors)
        if not options.templates:
            start = (start + count * read) % total
        made.append(shaped(flat, shape))
    return made


def shaped(flat, shape):
    """(O, *k, I) numbers as (O, I, *k)."""
    out, inner, *kernel = shape
    return flat.reshape(out, *kernel, inner).movedim(-1, 1)
