"""What samples of a policy are worth."""

import numpy as np

from zoo.recipes.answers import Answer
from zoo.recipes.rollouts import with_unfinished_reward


def test_an_answer_that_does_not_end_has_the_reward_that_was_set_for_it():
    answers = [Answer([5, 1], "5", True), Answer([5, 5], "55", False)]
    said = np.array([0.25, 3.0], np.float32)
    np.testing.assert_array_equal(with_unfinished_reward(said, answers, None), said)
    found = with_unfinished_reward(said, answers, -1.0)
    np.testing.assert_array_equal(found, np.array([0.25, -1.0], np.float32))
    assert found.dtype == np.float32
