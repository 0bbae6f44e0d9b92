"""The tasks of long-context recall follow the rules of their protocols, and their scores say what they are meant to."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from experiments.long_context_recall import haystacks, needles, ruler_words, scores, words
from experiments.long_context_recall.audio import WORDS, AudioHaystack, digit_in_a_stream
from experiments.long_context_recall.babilong import TASKS, tell
from experiments.long_context_recall.needles import NEEDLE, Needles, magic_numbers
from experiments.long_context_recall.registry import task_named, tasks
from experiments.long_context_recall.samples import Sample, Setting, candidate_ids, largest, training_record
from experiments.long_context_recall.video import VideoHaystack, drawn_frames, word_in_a_video
from experiments.multimodal.sources import synthetic_sources
from zoo.data import MediaConfig, load_media_prompt, parse_interleaved, train_tokenizer
from zoo.data.images import read_image
from zoo.errors import UserError

NAMES = list(tasks())
LONG = {"needles-50": 8192, "needles-100": 8192}


@pytest.fixture(scope="module")
def setting() -> Setting:
    text = "\n\n".join(words.made_up_text(1, 40_000))
    tokenizer = train_tokenizer([text, " ".join(words.CITIES), haystacks.NOISE, "0123456789"], 700)
    return Setting(tokenizer, haystacks.haystack(tokenizer, characters=40_000), length=3000, seed=5)


def sample(setting: Setting, name: str, number: int = 0, depth: float | None = None, length: int = 0) -> Sample:
    """At the setting's length, or the least round one at which the task has room."""
    setting = replace(setting, length=length or LONG.get(name, setting.length))
    return task_named(name).make(setting, number, depth)


def text_of(setting: Setting, found: Sample) -> str:
    return setting.tokenizer.decode(found.prompt)


def tokens(setting: Setting, text: str) -> int:
    return len(haystacks.running_ids(setting.tokenizer, text))


def test_a_haystack_is_the_tokenisation_of_its_text_and_its_ends_are_ends_of_sentences(setting):
    hay = setting.haystack
    assert setting.tokenizer.encode("\n\n".join(hay.paragraphs)) == hay.ids.tolist()
    for end in hay.ends[:50]:
        before, after = setting.tokenizer.decode(hay.ids[:end]), setting.tokenizer.decode(hay.ids[end : end + 2])
        assert re.search(r'[.?!]"?$', before) and after.startswith(" ") and not after.startswith("  ")


def test_titles_and_initials_end_no_sentence():
    text = "Mr. Dombey met Mrs. G. Eliot. `Son!´ he said. It rained.\n\nAt St. Paul's? Yes."
    assert [text[: found.end()][-7:] for found in haystacks.SENTENCE_END.finditer(text)] == [
        " Eliot.",
        "e said.",
        "Paul's?",
    ]


def test_a_text_that_is_too_short_is_repeated(setting):
    hay = setting.haystack
    start, total = int(hay.ends[6]), len(hay.ids)
    ids, ends = haystacks.cut(hay, total + 500, sentence=7)
    np.testing.assert_array_equal(ids, np.concatenate([hay.ids, hay.ids])[start : start + total + 500])
    assert set(ends) == {end for end in [*(hay.ends - start), *(hay.ends + total - start)] if 0 < end < total + 500}


@pytest.mark.parametrize(("depth", "place"), [(0, 0), (19, 0), (20, 10), (49, 10), (50, 25), (99, 40), (100, 50)])
def test_a_needle_goes_back_to_the_end_of_a_sentence_and_at_the_end_of_all_it_does_not(depth, place):
    assert haystacks.insertion_point(np.array([10, 25, 40]), 50, depth) == place


@pytest.mark.parametrize("depth", [-1, 100.1])
def test_a_depth_outside_of_the_text_is_refused(depth):
    with pytest.raises(UserError, match="0 .. 100"):
        haystacks.insertion_point(np.array([10]), 50, depth)


@pytest.mark.parametrize("depth", [0, 14, 50, 86, 100])
def test_the_needle_stands_where_its_depth_says_and_is_tokenised_as_in_running_text(setting, depth):
    found = sample(setting, "needle", 3, depth)
    text, start = text_of(setting, found), int(found.facts["token"])
    needle = " " + NEEDLE.format(key=found.facts["key"], value=found.references[0])
    length, head = tokens(setting, needle), 1 + tokens(setting, needles.BEFORE)
    assert setting.tokenizer.decode(found.prompt[start : start + length]) == needle and text.count(needle) == 1
    as_text = haystacks.running_ids(setting.tokenizer, text)
    np.testing.assert_array_equal(as_text[: start + length - 1], found.prompt[1 : start + length])
    tail = tokens(setting, text[text.index("\n</context>") :])
    hay = len(found.prompt) - head - tail - length
    target, place = int(hay * depth / 100), start - head
    if depth == 100:
        assert place == hay
    else:
        assert place <= target and (
            place == 0 or re.search(r'[.?!]"?$', setting.tokenizer.decode(found.prompt[:start]))
        )
        skipped = setting.tokenizer.decode(found.prompt[start + length : head + target + length])
        assert not re.search(r'[.?!]"? [A-Z"]', skipped)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_with_its_answer_fills_the_length_to_within_one_unit_and_never_exceeds_it(setting, name):
    line = max(tokens(setting, haystacks.NOISE + "\n"), tokens(setting, " " + haystacks.NOISE + "\n"))
    uuid = "7f3c0a9e-58d1-4b62-9c47-2e8fa1b3d605"
    units = {
        "ruler-niah-single-1": line, "ruler-vt": line, "passkey": line, "number-string": line, "key-value": 110,
        "ruler-niah-multikey-2": 90, "ruler-niah-multikey-3": 140, "ruler-cwe": 80, "ruler-fwe": 60,
        **dict.fromkeys(("mrcr-2", "mrcr-4", "mrcr-8"), 270),
    }  # fmt: skip
    assert tokens(setting, f', "{uuid}": "{uuid}"') < units["key-value"]
    assert max(tokens(setting, part) for part in setting.haystack.paragraphs[:50]) < units["mrcr-2"] - 40
    for length in (LONG.get(name, 2500), 8200):
        for number in range(2):
            found = sample(setting, name, number, length=length)
            left = length - len(found.prompt) - found.max_new_tokens
            assert 0 <= left < units.get(name, 1), (name, length, left)
            assert found.prompt[0] == setting.tokenizer.bos_id and found.prompt.dtype == np.int32
            assert found.max_new_tokens >= tokens(setting, found.answer)


@pytest.mark.parametrize("name", NAMES)
def test_the_right_answer_scores_one_nothing_scores_zero_and_another_samples_answer_less_than_one(setting, name):
    found, again, other = sample(setting, name, 0), sample(setting, name, 0), sample(setting, name, 1)
    assert scores.score(found, found.answer) == 1 and scores.score(found, "") == 0
    assert scores.score(found, f"{found.answer}\n\nUser:" if found.metric != "mrcr" else found.answer) == 1
    if name != "needle-classic" and found.references != other.references:
        assert scores.score(found, other.answer) < 1
    np.testing.assert_array_equal(found.prompt, again.prompt)
    assert not text_of(setting, found).endswith(" ") and found.answer[0] in " \n"
    assert (
        not found.candidates or found.answer in found.candidates and len({*found.candidates}) == len(found.candidates)
    )
    assert sum(map(len, candidate_ids(found, setting.tokenizer))) >= len(found.candidates)


@pytest.mark.parametrize("name", NAMES)
def test_too_short_a_length_is_said_in_one_line(setting, name):
    with pytest.raises(UserError, match=name) as error:
        sample(setting, name, length=90)
    assert "\n" not in str(error.value)


def test_cells_of_a_grid_differ_in_length_and_depth_only(setting):
    cells = [sample(setting, "needle-1-of-10", 4, depth, length) for depth in (0, 70) for length in (2000, 3000)]
    assert len({(cell.references, cell.question, cell.candidates) for cell in cells}) == 1
    other = task_named("needle-1-of-10").make(replace(setting, seed=6), 4)
    assert other.references != cells[0].references


def test_tasks_without_a_depth_and_unknown_tasks_are_refused(setting):
    with pytest.raises(UserError, match="has no depth"):
        sample(setting, "ruler-vt", 0, 50)
    with pytest.raises(UserError, match="did you mean 'passkey'"):
        task_named("paskey")


def test_a_hundred_needles_are_all_there_once_spread_evenly_after_the_first(setting):
    found = sample(setting, "needles-100", 0, depth=20)
    text = text_of(setting, found)
    hidden = re.findall(r"The special magic ([\w ]+) number is: (\d{7})\.", text)
    assert len(hidden) == len(dict(hidden)) == 100 and {value for _, value in hidden} == set(found.references)
    assert [value for _, value in hidden] == list(found.references)
    others = re.split(
        r" The special magic [\w ]+ number is: \d{7}\.", text.split("<context>\n")[1].split("\n</context>")[0]
    )
    before = np.cumsum([len(part) for part in others[:-1]]) / sum(map(len, others))
    np.testing.assert_allclose(before, 0.2 + 0.8 * np.arange(100) / 100, atol=0.02)


def test_held_out_cities_are_not_among_those_for_training_and_made_up_keys_are_in_no_list(setting):
    train, held_out = words.cities(held_out=False), words.cities(held_out=True)
    assert not set(train) & set(held_out) and len(train) >= 100 and {*train, *held_out} == set(words.CITIES)
    keys = {kind: {sample(setting, name, i).facts["key"] for i in range(20)} for kind, name in (
        ("train", "needle"), ("held out", "needle-held-out"), ("made up", "needle-made-up"))}  # fmt: skip
    assert keys["train"] <= set(train) and keys["held out"] <= set(held_out) and not keys["made up"] & {*words.CITIES}
    assert all(tokens(setting, f" {key}") > 1 for key in keys["made up"])


def test_values_of_few_digits_have_fewer_candidates_and_too_many_needles_are_refused(setting):
    assert len(magic_numbers(Needles(4, digits=1), "n", setting, 0).candidates) == 6
    with pytest.raises(UserError, match="only 9 different"):
        magic_numbers(Needles(10, digits=1), "n", setting, 0)


def test_the_variables_of_the_chain_hold_the_value_in_order_and_no_others_do(setting):
    found = sample(setting, "ruler-vt", 2)
    example, text = text_of(setting, found).rsplit("Memorize and track", 1)
    assert found.facts["examples"] == 1 and example.count("VAR ") > 5 and "\nQuestion" in example
    steps = re.findall(r"VAR ([A-Z]+) = (?:VAR )?([A-Z]+|\d{5})", text)
    names = [name for name, _ in steps]
    assert names == list(found.references) and all(len(name) == 5 for name in names)
    assert [given for _, given in steps[1:]] == names[:-1]
    assert f"assigned the value {steps[0][1]} in" in text and "5 variables are assigned" in text


def test_the_example_of_variable_tracking_is_left_out_where_it_has_no_room(setting):
    assert sample(setting, "ruler-vt", length=700).facts["examples"] == 0


@pytest.mark.parametrize(("length", "common", "uncommon"), [(3000, 6, 1), (5000, 30, 3)])
def test_common_words_are_as_often_in_the_numbered_list_as_ruler_says(setting, length, common, uncommon):
    found = sample(setting, "ruler-cwe", 0, length=length)
    _, example, text = text_of(setting, found).split("Below is a numbered list")
    items = re.findall(r"(\d+)\. ([\w-]+)", text.split("\nQuestion")[0])
    assert [int(number) for number, _ in items] == list(range(1, len(items) + 1))
    counts = Counter(word for _, word in items)
    assert {word for word, count in counts.items() if count == common} == set(found.references)
    assert len(found.references) == 10 and set(counts.values()) == {common, uncommon}
    shown = Counter(re.findall(r"\d+\. ([\w-]+)", example.split("\nQuestion")[0]))
    assert not set(found.references) & set(shown) and {word for word, _ in shown.most_common(10)} == set(
        re.findall(r"\d+\. ([\w-]+)", example.split("list are:")[1])
    )


@pytest.mark.parametrize("length", [450, 800, 3000])
def test_the_three_frequent_words_are_ahead_of_all_others_and_counts_follow_the_zeta_law(setting, length):
    found = sample(setting, "ruler-fwe", 1, length=length)
    text = text_of(setting, found).split("coded words. ", 1)[1].split("\nQuestion")[0]
    counts = Counter(text.split())
    dots = counts.pop("...")
    ranked = counts.most_common()
    assert [word for word, _ in ranked[:3]] == list(found.references)
    assert len(ranked) < 4 or ranked[2][1] > ranked[3][1]
    n = dots * ruler_words.zeta(2.0)
    for rank, (_, count) in enumerate(ranked, start=2):
        assert abs(count - n / rank**2 / ruler_words.zeta(2.0)) <= 1
    assert ruler_words.zeta(2.0) == pytest.approx(np.pi**2 / 6, abs=1e-9)


def test_rulers_needles_have_as_many_keys_values_and_questions_as_configured(setting):
    pattern = r"One of the special magic \w+ for ([\w-]+) is: ([\w-]+)\."
    for name, keys, each, asked in (
        ("ruler-niah-single-2", 1, 1, 1), ("ruler-niah-multikey-1", 4, 1, 1),
        ("ruler-niah-multivalue", 1, 4, 4), ("ruler-niah-multiquery", 4, 1, 4),
    ):  # fmt: skip
        found = sample(setting, name, 1)
        hidden = re.findall(pattern, text_of(setting, found))
        assert len({key for key, _ in hidden}) == keys and len(hidden) == keys * each
        assert len(found.references) == asked and set(found.references) <= {value for _, value in hidden}
        plural = "are all the special magic numbers" if asked > 1 else "is the special magic number "
        assert plural in found.question and all(
            key in found.question for key, value in hidden if value in found.references
        )
    for name in ("ruler-niah-multikey-2", "ruler-niah-multikey-3"):
        found = sample(setting, name, 1)
        context = text_of(setting, found).split("afterwards.\n")[1].split("What is")[0]
        lines = [re.fullmatch(pattern, line).groups() for line in context.strip().split("\n")]
        assert len(lines) > 10 and [value for key, value in lines if f"for {key} " in found.question] == [
            *found.references
        ]


@pytest.mark.parametrize("name", ["passkey", "number-string"])
def test_digits_stand_among_the_noise_where_their_depth_says(setting, name):
    for depth in (0, 50, 100):
        found = sample(setting, name, 1, depth)
        lines = text_of(setting, found).split("there.\n\n")[1].split("\n\n")[0].split("\nWhat")[0].strip().split("\n")
        (place,) = [i for i, line in enumerate(lines) if found.references[0] in line]
        assert place == round(depth / 100 * found.facts["sentences"]) and set(lines) - {lines[place]} == {
            haystacks.NOISE
        }
        assert lines[place].count(found.references[0]) == 2
    if name == "number-string":
        assert sum(a == b for a, b in zip(found.references[0], found.references[0][1:])) >= 5


@pytest.mark.parametrize("depth", [0, 40, 100])
def test_the_json_object_has_the_pair_that_is_asked_for_at_its_depth(setting, depth):
    found = sample(setting, "key-value", 0, depth)
    text = text_of(setting, found)
    data = json.loads(re.search(r"\{.*\}", text, re.DOTALL).group())
    key = re.search(r'Key: "(.*)"', text).group(1)
    assert data[key] == found.references[0] and list(data).index(key) == round(depth / 100 * (len(data) - 1))
    assert len(data) == found.facts["pairs"] > 10


def test_gemini_1_pairs_stand_before_the_filler(setting):
    found = sample(setting, "pairs-first", 1)
    text = text_of(setting, found)
    pairs = dict(re.findall(r"([\w-]+): (\d{7})\n", text[:600]))
    key = re.search(r"value of ([\w-]+)\?", found.question).group(1)
    assert len(pairs) == 8 and pairs[key] == found.references[0] and text.index(f"{key}: ") < 400 < len(text) / 10


@pytest.mark.parametrize("same", [2, 8])
def test_the_reply_asked_for_is_the_ith_to_the_same_request(setting, same):
    found = sample(setting, f"mrcr-{same}", 1, length=6000)
    prefix, reply = found.references
    turns = re.findall(r"User: Write an? (.*)\.\n\nModel: (.*)\n\n", text_of(setting, found))
    ordinal, asked = re.search(
        rf"Prepend {prefix} to the (\d)\w\w \(1 indexed\) (.*)\. Do not", found.question
    ).groups()
    replies = [said for request, said in turns if request == asked]
    assert len(replies) == len(set(replies)) == same and replies[int(ordinal) - 1] == reply and len(turns) > same
    form, topic = asked.split(" about the ")
    similar = sum((form in r) != (topic in r) for r, _ in turns)
    assert 0.2 < similar / (len(turns) - same) < 0.9
    assert scores.score(found, reply) == 0 and 0 < scores.score(found, f"{prefix}{replies[int(ordinal) - 2]}") < 1


def followed(sentences: list[str], question: str) -> str:
    """The place that a story's question asks for, found by following it."""
    at: dict[str, str] = {}
    holder: dict[str, str] = {}
    been: dict[str, list[str]] = {}
    for sentence in sentences:
        person, what = sentence.split()[0], sentence.rstrip(".").split()[-1]
        if what in scores.PLACES:
            at[person] = what
            for item in (item for item, who in holder.items() if who == person):
                been[item].append(what)
        elif re.search("got|grabbed|picked|took", sentence):
            assert what not in holder and (what not in been or been[what][-1] == at[person])
            holder[what] = person
            been.setdefault(what, [at[person]])
        else:
            assert holder.pop(what) == person
    item = re.search(r"[Ww]here (?:is|was)(?: the)? (\w+)", question).group(1)
    if "before" not in question:
        return at[item] if item in at else been[item][-1]
    return been[item][been[item].index(question.rstrip("?").split()[-1]) - 1]


@pytest.mark.parametrize("kind", list(TASKS))
def test_a_story_has_the_answer_that_following_it_gives(kind):
    for seed in range(40):
        story = tell(kind, np.random.default_rng(seed))
        assert followed(list(story.sentences), story.question) == story.place
        assert TASKS[kind].facts[0] <= len(story.sentences) <= TASKS[kind].facts[1]


def test_the_facts_of_babilong_stay_in_order_in_the_background(setting):
    for number in range(3):
        found = sample(setting, "babilong-qa3", number)
        context = text_of(setting, found).split("<context>\n")[1].split("\n</context>")[0]
        things = "|".join((*scores.PLACES, "apple", "milk", "football"))
        told = re.findall(rf"(?:Mary|John|Daniel|Sandra) [a-z ]+(?:{things})\.", context)
        assert len(told) == found.facts["facts"] and followed(told, found.question) == found.references[0]
        assert context.index(told[-1]) - context.index(told[0]) > len(" ".join(told)) + 1000


@pytest.mark.parametrize(("output", "right"), [
    (" The football was in the kitchen before.", 1.0),
    (" Kitchen", 1.0),
    (" In the kitchen. Not in the office.", 1.0),
    (" In the kitchen or the office", 0.0),
    (" The garden", 0.0),
    (" Before the garden it was in the kitchen", 1.0),
])  # fmt: skip
def test_babilong_takes_the_only_place_of_the_first_sentence_that_the_question_does_not_name(output, right):
    asked = Sample("b", np.empty(0, np.int32), ("kitchen",), "", 1, "babilong", question="Where before the garden?")
    assert scores.score(asked, output) == right


@pytest.mark.parametrize(("metric", "references", "output", "right"), [
    ("string_match_all", ("Apple", "pear"), "an APPLE", 0.5),
    ("string_match_part", ("Apple", "pear"), "an APPLE", 1.0),
    ("first_number", ("123",), " is 123.", 1.0),
    ("first_number", ("123",), "1234", 0.0),
    ("first_number", ("123",), "7, 123", 0.0),
    ("word_match", ("a-1",), '{"k": "a-1"}', 1.0),
    ("word_match", ("a-1",), "xa-1", 0.0),
    ("exact_span", ("eat a sandwich",), ' "Eat a sandwich", then sit', 1.0),
    ("exact_span", ("eat a sandwich",), "You eat a sandwich", 0.0),
    ("numbers_found", ("12", "34", "56"), "12 and 12 and 341 and 56", 2 / 3),
])  # fmt: skip
def test_scores(metric, references, output, right):
    assert scores.score(Sample("t", np.empty(0, np.int32), references, "", 1, metric), output) == pytest.approx(right)


def test_the_rank_counts_candidates_that_are_as_likely_as_the_answer():
    found = Sample("t", np.empty(0, np.int32), ("b",), "b", 1, "exact_span", candidates=("a", "b", "c"))
    assert [scores.likelihood_rank(found, values) for values in ([-2, -1, -3], [-1, -1, -3], [-1, -2, -1.5])] == [
        0,
        1,
        2,
    ]


def test_bisection_finds_the_largest_count_that_has_room():
    for room in range(7, 60):
        found = largest(lambda n: 7 * n - n % 2, room, 1, "t")
        assert 7 * found - found % 2 <= room < 7 * (found + 1) - (found + 1) % 2


def test_a_word_is_drawn_on_one_frame_of_a_video_which_is_read_with_time_stamps(tmp_path, setting):
    config, frames = VideoHaystack(frames=9), drawn_frames(5)
    found = word_in_a_video(config, "video", 0, frames, tmp_path, 2, depth=50)
    media = MediaConfig(patch_size=8, patches_per_row=4096, max_patches=144, video_frames=9)
    shown = [read_image(tmp_path / found.parts[0]["video"] / f"{i}.png", media) for i in range(9)]
    changed = [i for i, pixels in enumerate(shown) if not any((pixels == frame).all() for frame in frames)]
    assert changed == [4] and found.facts["time"] == "00:04" and found.answer in found.candidates
    ids, read = load_media_prompt(found.parts, setting.tokenizer, media, tmp_path)
    assert len(np.unique(read.images.segment_ids)) == 9
    assert "00:08" in setting.tokenizer.decode([i for i in ids[0] if i < setting.tokenizer.vocab_size])
    assert parse_interleaved(training_record(found), "t", tmp_path, media, "text").parts[-1].loss


@pytest.mark.parametrize("ask", ["keyword", "time"])
def test_one_recording_of_a_stream_is_what_is_asked_for(tmp_path, ask):
    clips = synthetic_sources(count=30).clips
    found = digit_in_a_stream(AudioHaystack(ask, recordings=6), "audio", 0, clips, tmp_path, 1, depth=60)
    config = MediaConfig(clips_per_row=64)
    parts = parse_interleaved(training_record(found), "t", tmp_path, config, "text").parts
    recordings = [part for part in parts if part.kind == "audio"]
    assert found.facts["recording"] == 3 and len(recordings) == (1 if ask == "keyword" else 6)
    assert [part.loss for part in parts if part.kind == "text"][-2:] == [False, True]
    sound = np.concatenate([np.frombuffer(part.path.read_bytes(), "<i2", offset=44) for part in recordings])
    right = [c for c in clips if WORDS[c.digit] == found.references[0] and _contains(sound, c.samples)]
    others = [c for c in clips if WORDS[c.digit] != found.references[0] and _contains(sound, c.samples)]
    assert right and others and (ask == "time" or not [c for c in others if c.digit in AudioHaystack().keywords])
    assert ask == "keyword" or "00:03" in found.question and parts[6].text == "00:03"


def _contains(sound: np.ndarray, piece: np.ndarray) -> bool:
    return piece.astype("<i2").tobytes() in sound.tobytes()


@pytest.mark.slow
def test_a_million_tokens_of_novels_take_seconds(shared_dir, setting):
    hay = haystacks.haystack(setting.tokenizer, shared_dir)
    assert len(hay.paragraphs) > 19_000 and not any("<|" in part for part in hay.paragraphs) and len(hay.ids) > 10**6
    for name in ("needles-100", "ruler-niah-single-2", "babilong-qa1"):
        found = task_named(name).make(Setting(setting.tokenizer, hay, 10**6), 0)
        assert len(found.prompt) + found.max_new_tokens == 10**6
