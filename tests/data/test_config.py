import pytest

from zoo.data import DataConfig, open_corpus
from zoo.errors import UserError


@pytest.mark.parametrize(
    "field, value",
    [
        ("sequence_length", 0),
        ("sequence_length", -5),
        ("sequence_length", 10**12),
        ("sequence_length", 1.5),
        ("batch_size", 0),
        ("batch_size", -1),
        ("batch_size", 10**12),
        ("batch_size", True),
        ("vocab_size", -1),
        ("seed", -1),
        ("validation_fraction", 1.0),
        ("validation_fraction", -0.1),
        ("validation_fraction", float("nan")),
        ("validation_batches", 0),
        ("packing", "best_fit"),
        ("format", "xml"),
        ("read_threads", 0),
    ],
)
def test_a_wrong_value_is_refused_with_the_name_of_its_field(field, value):
    with pytest.raises(UserError, match=field):
        DataConfig(**{field: value})


def test_an_absurd_number_of_tokens_a_step_is_refused():
    with pytest.raises(UserError, match="1,099,511,627,776 tokens a step"):
        DataConfig(batch_size=2**20, sequence_length=2**20)


@pytest.mark.parametrize(
    "paths, weights, reason",
    [
        (("a", "b"), (1.0,), "1 weights for 2 paths"),
        (("a", "b"), (0.5, -0.5), "the weight of b must be a number of at least 0, not -0.5"),
        (("a", "b"), (0.5, float("nan")), "the weight of b"),
        (("a", "b"), (0.0, 0.0), "sum to 0"),
        ((), (1.0,), "without paths"),
    ],
)
def test_weights_that_fit_no_mixture_are_refused(paths, weights, reason):
    with pytest.raises(UserError, match=reason):
        DataConfig(paths=paths, weights=weights)


def test_lists_as_json_gives_them_become_tuples():
    config = DataConfig(paths=["a", "b"], weights=[1, 2])
    assert config == DataConfig(paths=("a", "b"), weights=(1, 2))
    hash(config)


def test_chat_without_paths_may_be_a_recipes_default_and_is_refused_when_it_is_opened():
    with pytest.raises(UserError, match="needs paths"):
        open_corpus(DataConfig(format="chat"))
