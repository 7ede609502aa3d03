"""The benchmark of private sums, at a size that can be looked through: what it counts, it finds."""

from dataclasses import replace

from benchmarks import secagg

UNITS = secagg.Units(*[1.0] * 10)


def test_sixty_devices_send_what_the_protocol_s_counts_say_written_as_text():
    """60 devices: 16 neighbours each, 10 of them open a secret."""
    round = secagg.of(60, 8192)
    measured, graph = secagg.secagg_costs(round)
    theory = secagg.counted_secagg(round, graph, UNITS)
    assert (graph.degree, graph.threshold) == (16, 10)
    assert (measured.messages, round.counted) == (5, 54)
    words = round.by.bytes
    # text takes two digits a byte, and names around them
    assert 2 < (measured.up - words) / (theory.up - words) < 4
    assert 2 < measured.down / theory.down < 4
    assert measured.device_s > 0 < measured.server_s
    assert set(measured.steps) == {"keys", "shares", "words", "consent", "revealed"}


def test_a_primitive_costs_as_often_as_it_is_used():
    """At one second a use: a device that has 16 neighbours makes 17 streams, and shares each of two
    secrets with 16 by 9 products.
    """
    round = secagg.of(60, 8192)
    graph = secagg.secagg_costs(round)[1]
    free = replace(UNITS, **dict.fromkeys(vars(UNITS), 0.0))
    streams = secagg.counted_secagg(round, graph, replace(free, stream=1.0))
    assert (streams.device_s, round_of(streams.server_s)) == (17, 54 + 6 * 16 * 0.9)
    shares = secagg.counted_secagg(round, graph, replace(free, multiply=1.0))
    assert shares.device_s == 2 * 16 * 9
    helped = secagg.counted_helper(round, replace(free, stream=1.0))
    assert (helped.device_s, helped.helper_s, helped.server_s) == (1, 60, 0)


def round_of(value: float) -> float:
    return round(value, 6)


def test_with_a_helper_a_device_sends_one_message_of_a_seal_more_than_its_words():
    round = secagg.of(100, secagg.GBOARD)
    costs = secagg.helper_costs(secagg.of(12, 8192))
    assert costs.messages == 1
    assert costs.helper_s > 0
    assert secagg.counted_helper(round, UNITS).up / secagg.eight_bits(secagg.GBOARD) < 1.35
    thousand = secagg.counted_helper(secagg.of(1000, secagg.GBOARD), UNITS)
    assert thousand.up / secagg.eight_bits(secagg.GBOARD) < 1.75


def test_the_table_has_a_line_for_each_question_and_one_that_says_how_sure_it_is(capsys):
    secagg.main(["--devices", "12", "--values", "4096"])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("| 12 |")]) == 7
    assert "of 12 devices each has 4 neighbours, 3 of whom can open" in lines[-1]
