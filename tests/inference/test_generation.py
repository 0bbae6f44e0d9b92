import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests_inference import small_model
