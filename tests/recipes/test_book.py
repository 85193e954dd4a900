from __future__ import annotations

from hypothesis import given, strategies as st

from qi.recipes import Recipe, Rule, TensorSpec, get_recipe

INT2, INT4 = TensorSpec(bits=2), TensorSpec(bits=4)
W8A8 = get_recipe("w8a8")


def test_without_rules_the_defaults_hold():
    book = W8A8.resolve()
    assert book.weights_for("a", "Dense", "kernel") == (W8A8.weights, "")
    assert book.activations_for("a", "Dense") == (W8A8.activations, "")
    assert book.unused_rules() == ()


def test_a_recipe_says_what_it_leaves_in_float():
    book = get_recipe("w8").resolve()
    assert book.activations_for("a", "Dense") == (None, "the recipe w8 quantizes no activations")
    book = Recipe("acts", activations=INT4).resolve()
    assert book.weights_for("a", "Dense", "kernel") == (None, "the recipe acts quantizes no weights")


def test_the_first_rule_that_matches_wins():
    recipe = W8A8.with_rules(Rule("head", weights=INT4), Rule("h*", weights="float"), Rule("*", weights=INT2))
    book = recipe.resolve()
    assert book.weights_for("head", "Dense", "kernel").spec == INT4
    assert book.weights_for("hidden", "Dense", "kernel") == (None, "left in float by rule match='h*'")
    assert book.weights_for("conv", "Conv2D", "kernel").spec == INT2


def test_a_silent_slot_of_the_first_match_keeps_the_default_whatever_follows():
    recipe = W8A8.with_rules(Rule("head", activations="float"), Rule("*", weights=INT2))
    book = recipe.resolve()
    assert book.weights_for("head", "Dense", "kernel").spec == W8A8.weights
    assert book.activations_for("head", "Dense") == (None, "left in float by rule match='head'")
    assert book.weights_for("other", "Dense", "kernel").spec == INT2
    assert book.activations_for("other", "Dense").spec == W8A8.activations


def test_a_rule_for_one_weight_leaves_the_others_and_the_outputs_to_later_rules():
    recipe = W8A8.with_rules(
        Rule("mha", weight="query/kernel", weights="float"), Rule("mha", weights=INT4, activations="float")
    )
    book = recipe.resolve()
    assert book.weights_for("mha", "MultiHeadAttention", "query/kernel").spec is None
    assert book.weights_for("mha", "MultiHeadAttention", "key/kernel").spec == INT4
    assert book.activations_for("mha", "MultiHeadAttention").spec is None
    assert book.unused_rules() == ()


def test_rules_may_name_layers_within_the_layer():
    names = ("rnn", "RNN", "cell/kernel", [("rnn/cell", "LSTMCell", "kernel")])
    for rule in (
        Rule("rnn", weight="cell/kernel", weights=INT4),
        Rule("rnn/cell", weight="kernel", weights=INT4),
        Rule(layer_type="LSTMCell", weights=INT4),
    ):
        book = W8A8.with_rules(Rule("other", weights="float"), rule, Rule("rnn", weights=INT2)).resolve()
        assert book.weights_for(*names).spec == INT4
    for rule in (Rule("rnn", layer_type="LSTMCell", weights=INT4), Rule("rnn", weight="kernel", weights=INT4)):
        assert W8A8.with_rules(rule).resolve().weights_for(*names).spec == W8A8.weights
    book = W8A8.with_rules(Rule(layer_type="LSTMCel", weights=INT4)).resolve()
    book.weights_for(*names)
    assert book.unused_rules() == ("layer_type='LSTMCel': matches no layer. Did you mean 'LSTMCell'?",)


def test_rules_that_decided_nothing_are_named_with_the_cause():
    recipe = W8A8.with_rules(
        Rule("hed*", weights="float"),
        Rule(layer_type="dense", weights="float"),
        Rule("head", weights="float"),
        Rule("*", layer_type="Dense", weights=INT4),
        Rule("head", weight="bias", weights="float"),
        Rule("zzzzzz", weights="float"),
    )
    book = recipe.resolve()
    book.weights_for("head", "Dense", "kernel")
    book.activations_for("head", "Dense")
    assert book.unused_rules() == (
        "match='hed*': matches no layer. Did you mean 'head'?",
        "layer_type='dense': matches no layer. Did you mean 'Dense'?",
        "match='*', layer_type='Dense': "
        "matches layers, but an earlier rule came first or they have nothing that it speaks of",
        "match='head', weight='bias': matches layers, but none of their weights, or an earlier rule came first",
        "match='zzzzzz': matches no layer.",
    )


def test_a_rule_about_folded_layers_says_where_they_are():
    book = W8A8.with_rules(
        Rule("bn", weights="float"), Rule(layer_type="BatchNorm*", activations="float"), Rule("*n*", weights="float")
    ).resolve()
    book.folded("bn", "BatchNormalization", "conv")
    book.folded("again", "BatchNormalization", "conv")
    book.weights_for("conv", "Conv2D", "kernel")
    assert book.unused_rules() == (
        "match='bn': matches only what was folded into other layers: 'bn' into 'conv'; do name those layers",
        "layer_type='BatchNorm*': matches only what was folded into other layers: 'bn' into 'conv' and 1 more; "
        "do name those layers",
    )


def test_every_book_counts_for_itself():
    recipe = W8A8.with_rules(Rule("a", weights="float"))
    used, fresh = recipe.resolve(), recipe.resolve()
    used.weights_for("a", "Dense", "kernel")
    assert used.unused_rules() == ()
    assert len(fresh.unused_rules()) == 1


PATTERNS = st.sampled_from(["*", "a", "b", "a*", "?", "ab"])
CHOICES = st.sampled_from(["float", INT2, INT4, None])


@given(st.lists(st.tuples(PATTERNS, CHOICES, CHOICES), max_size=5), st.sampled_from(["a", "b", "ab", "c"]))
def test_decisions_are_those_of_the_first_match(drafts, path):
    rules = tuple(
        Rule(match, weights=weights, activations=activations)
        for match, weights, activations in drafts
        if weights is not None or activations is not None
    )
    recipe = Recipe("r", TensorSpec(bits=8), None, rules)
    book = recipe.resolve()
    first = next((rule for rule in rules if rule.matches(path, "Dense", "kernel")), None)
    weights, why = book.weights_for(path, "Dense", "kernel")
    activations, why_not = book.activations_for(path, "Dense")
    chosen = (None, None) if first is None else (first.weights, first.activations)
    assert weights == {None: recipe.weights, "float": None}.get(chosen[0], chosen[0])
    assert activations == {None: None, "float": None}.get(chosen[1], chosen[1])
    assert (why == "") is (weights is not None)
    assert (why_not == "") is (activations is not None)
    assert len(book.unused_rules()) == len(rules) - (first is not None)


def test_rules_within_a_layer_have_to_speak_of_the_part_alone() -> None:
    eight = TensorSpec(bits=8)
    outer = ("lstm", "LSTM")
    wide = get_recipe("w8a8").with_rules(Rule("*", activations=eight)).resolve()
    assert wide.activations_within("lstm/lstm_cell", "LSTMCell", outer) is None
    for rule in (Rule("lstm/*", activations=eight), Rule(layer_type="*Cell", activations=eight)):
        book = get_recipe("w8a8").with_rules(rule).resolve()
        assert book.activations_within("lstm/lstm_cell", "LSTMCell", outer).spec == eight
        assert book.unused_rules() == ()
    book = get_recipe("w8a8").with_rules(Rule("lstm/*", activations="float")).resolve()
    assert "left in float by rule" in book.activations_within("lstm/lstm_cell", "LSTMCell", outer).reason
