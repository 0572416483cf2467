"""The idx format of MNIST, written."""

import numpy as np


def encode(array):
    header = bytes((0, 0, 8, array.ndim)) + np.asarray(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()
