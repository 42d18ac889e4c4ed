"""Choosing one of A, against NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from shoal.choices import masked_argmax, of_action


def test_masks_and_choices() -> None:
    scores = np.asarray([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [-5.0, -9.0, -7.0]], np.float32)
    mask = np.asarray([[True, False, True], [False, False, False], [False, True, True]])
    np.testing.assert_array_equal(masked_argmax(scores, None), [1, 1, 0])
    np.testing.assert_array_equal(masked_argmax(scores, mask), [2, 1, 2])  # nothing allowed: as if unmasked
    assert masked_argmax(scores, mask).dtype == jnp.int32
    outputs = np.arange(24.0, dtype=np.float32).reshape(3, 4, 2)
    picked = of_action(jnp.asarray(outputs), np.asarray([3, 0, 2]))
    np.testing.assert_array_equal(picked, outputs[np.arange(3), [3, 0, 2]])
    np.testing.assert_array_equal(
        of_action(jnp.asarray(scores), np.asarray([2, 0, 1]), axis=-1), [2.0, 1.0, -9.0]
    )
