"""Text rules have a number, and a phone and a server of different ones refuse each other."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some
from sentencepiece import sentencepiece_model_pb2

from device_runtime import config, text
from device_runtime.bundle import Manifest, open_verified, write
from device_runtime.causes import Cause
from device_runtime.errors import BundleError, VocabularyError
from device_runtime.text import RULES, Vocabulary, rules_of
from device_runtime.wire import Assignment, CheckIn, Conditions
from model.corpus import token_lists
from model.vocabulary import build
from server.eligibility import History, Policy, decide
from server.task import TaskSettings, in_language_of, policy_hash

VOCABULARY = build([["hello", "world"]])
HASH = "ab" * 32


def named(name: str) -> bytes:
    """The model with another name of its rules."""
    model = sentencepiece_model_pb2.ModelProto.FromString(VOCABULARY.model)
    model.normalizer_spec.name = name
    return model.SerializeToString()


def test_a_vocabulary_says_the_text_rules_it_was_made_by():
    assert VOCABULARY.rules == RULES == 2
    assert rules_of(VOCABULARY.model) == 2


@pytest.mark.parametrize("name", ["identity", "nmt_nfkc", "", "nwp-v1", "nwp-v0", "nwp-v02"])
def test_a_vocabulary_that_names_no_later_rules_is_of_rules_1_and_its_ids_mean_the_same(name):
    earlier = Vocabulary(named(name))
    assert earlier.rules == 1
    assert earlier.tokens == VOCABULARY.tokens


def test_a_vocabulary_of_newer_rules_is_refused_by_name_with_what_to_do():
    with pytest.raises(VocabularyError, match=r"found text rules 3.*update Fedboard"):
        Vocabulary(named("nwp-v3"))


@given(some.binary(max_size=200))
def test_what_is_no_model_has_rules_1(data):
    assert rules_of(data) >= 1


@given(some.text(max_size=20), some.integers(1, 99_999))
def test_the_name_is_read_as_protobuf_writes_it(other, number):
    model = sentencepiece_model_pb2.ModelProto()
    model.normalizer_spec.name = f"nwp-v{number}"
    model.trainer_spec.unk_piece = other
    assert rules_of(model.SerializeToString()) == number


def test_the_words_of_a_corpus_have_the_ids_they_had_by_rules_1(tiny_corpus, tiny_vocabulary):
    now = build(token_lists(tiny_corpus.train), 40)
    assert (tiny_vocabulary.rules, now.rules) == (1, 2)
    assert (tiny_vocabulary.tokens, tiny_vocabulary.log_unigram) == (now.tokens, now.log_unigram)


def test_a_task_takes_rules_and_language_from_the_bundle(tiny_bundle):
    manifest = tiny_bundle.manifest
    assert in_language_of(TaskSettings(), replace(manifest, rules=None)).text_rules == 1
    both = in_language_of(TaskSettings(), replace(manifest, rules=2, language="en+de"))
    assert (both.text_rules, both.language) == (2, "en+de")


def test_what_an_operator_decided_of_a_task_of_rules_1_has_the_hash_it_always_had():
    assert policy_hash(TaskSettings()) != policy_hash(TaskSettings(text_rules=2))
    assert policy_hash(TaskSettings()) != policy_hash(TaskSettings(language="en"))


@pytest.mark.parametrize(
    ("device", "task", "cause"),
    [(1, 1, None), (2, 1, None), (2, 2, None), (1, 2, Cause.OUTDATED_RULES)],
)
def test_a_device_of_older_rules_than_its_task_stays_out(device, task, cause):
    message = CheckIn(Conditions(True, True, True), 20, HASH, rules=device)
    assert decide(message, History(0.0), 1, HASH, Policy(), 1.0, task) is cause


def test_a_device_of_an_earlier_version_follows_rules_1():
    table = config.read_json(config.to_json(CheckIn(Conditions(True, True, True), 20, HASH)), "")
    del table["rules"]
    assert config.from_table(CheckIn, table, "check-in").rules == 1


def test_a_manifest_of_rules_1_has_no_key_that_an_earlier_version_does_not_know(tiny_bundle):
    plain = replace(tiny_bundle.manifest, rules=None, language=None)
    assert b'"rules"' not in plain.encoded()
    assert b'"language"' not in plain.encoded()
    assert config.from_json(Manifest, plain.encoded(), "").text_rules == 1


def test_a_bundle_of_newer_rules_is_refused_by_name(tiny_bundle, tmp_path, signing_key, trusted):
    newer = replace(tiny_bundle.manifest, rules=RULES + 1)
    write(tmp_path / "bundle", newer, tiny_bundle.content, signing_key)
    with pytest.raises(BundleError, match=r"found text rules 3.*update Fedboard"):
        open_verified(tmp_path / "bundle", trusted)


def test_an_assignment_is_of_rules_1_where_it_does_not_say(tiny_bundle):
    work = Assignment("a1" * 16, 1, HASH, HASH, HASH, 60.0)
    assert work.rules == 1 <= text.RULES
