"""Addresses: what is taken, in which form it is kept, and what is refused before it can break a command or a header."""

import pytest

from mailkeep.core.address import (
    MAX_DISPLAY_CHARS,
    AddressError,
    Mailbox,
    check_printable,
    is_reserved,
    is_sinkhole,
    parse_mailbox,
)

CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0xD800, 0xDFFF)]


@pytest.mark.parametrize(
    ("text", "local", "domain", "display"),
    [
        ("ann@example.org", "ann", "example.org", ""),
        ("Ann.B+tag@Example.ORG", "Ann.B+tag", "example.org", ""),
        ("Ann <ann@example.org>", "ann", "example.org", "Ann"),
        ('"Ann, B." <ann@example.org>', "ann", "example.org", "Ann, B."),
        (r'"Ann \"the\" B" <ann@example.org>', "ann", "example.org", 'Ann "the" B'),
        ("<ann@example.org>", "ann", "example.org", ""),
        ('"" <ann@example.org>', "ann", "example.org", ""),
        ("Åse Ødegård <ase@example.org>", "ase", "example.org", "Åse Ødegård"),
        ("ann@xn--mnchen-3ya.de", "ann", "xn--mnchen-3ya.de", ""),
        ("ann@MÜNCHEN.de", "ann", "xn--mnchen-3ya.de", ""),
        ("用户@例え.jp", "用户", "xn--r8jz45g.jp", ""),
        ("ann@faß.de", "ann", "xn--fa-hia.de", ""),
        ('"a b"@example.org', '"a b"', "example.org", ""),
        (r'"a\"b"@example.org', r'"a\"b"', "example.org", ""),
        ('"plain"@example.org', "plain", "example.org", ""),
        ("ann@sinkhole。test", "ann", "sinkhole.test", ""),
    ],
)
def test_parses_to_one_canonical_form(text, local, domain, display):
    """The domain becomes a lower-case A-label, the local part and the display name stay what they mean."""
    assert parse_mailbox(text) == Mailbox(local, domain, display)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ann",
        "@example.org",
        "ann@",
        "ann@example",
        "ann@example.org.",
        "ann@.example.org",
        "ann@example..org",
        ".ann@example.org",
        "ann.@example.org",
        "an..n@example.org",
        "ann@-example.org",
        "ann@example-.org",
        "ann@exa_mple.org",
        "ann@exa mple.org",
        "ann @example.org",
        "ann@exa％mple.org",
        "ann@[127.0.0.1]",
        "ann@xn--.org",
        "a(b)@example.org",
        "ann@example.org, bob@example.org",
        "ann@example.org;bob@example.org",
        "Ann <ann@example.org> <bob@example.org>",
        "Ann <ann@example.org",
        "Ann ann@example.org>",
        "Ann <Ann <ann@example.org>>",
        '"Ann <ann@example.org>',
        "<>",
        "ann@example.org> SIZE=0",
        '"unclosed@example.org',
        "a\u200bnn@example.org",
        "\u202eann@example.org",
        "a\u00a0b@example.org",
    ],
)
def test_refuses_what_is_not_one_address(text):
    """What is not exactly one address is refused, whatever it would do to a command."""
    with pytest.raises(AddressError):
        parse_mailbox(text)


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
@pytest.mark.parametrize(
    "template",
    [
        "an{}n@example.org",
        "ann@exa{}mple.org",
        "ann@example.org{}",
        "{}ann@example.org",
        "An{}n <ann@example.org>",
        '"An{}n" <ann@example.org>',
        "Ann <an{}n@example.org>",
        "Ann <ann@example.org>{}",
        '"an{}n"@example.org',
    ],
)
def test_refuses_control_characters_everywhere(template, control):
    """No control character, line separator or lone surrogate gets in: not in a name, not at an end, not quoted."""
    with pytest.raises(AddressError):
        parse_mailbox(template.format(control))


@pytest.mark.parametrize(
    "text",
    [
        "Ann\r\nBcc: eve@example.org <ann@example.org>",
        '"Ann\r\n\r\nbody" <ann@example.org>',
        "ann@example.org\r\nRCPT TO:<eve@example.org>",
        "ann@example.org>\r\nDATA",
        "Ann\u2028Bcc: eve@example.org <ann@example.org>",
        "Ann\x85Bcc: eve@example.org <ann@example.org>",
    ],
)
def test_refuses_header_and_command_injection(text):
    """A name or address that would begin a header, a body or a command of its own is refused."""
    with pytest.raises(AddressError):
        parse_mailbox(text)


def test_an_encoded_word_is_only_text():
    """An encoded-word is not decoded: its hidden line break stays four visible letters for the writer to encode anew."""
    name = "=?utf-8?q?Ann=0D=0ABcc:_eve=40example.org?="
    assert parse_mailbox(f"{name} <ann@example.org>").display == name


@pytest.mark.parametrize(
    ("octets", "local"),
    [(64, "a" * 64), (64, "é" * 32), (65, "a" * 65), (65, "é" * 32 + "a"), (66, "é" * 33)],
)
def test_bounds_the_local_part_in_octets(octets, local):
    """64 octets before the @ pass, one more does not, whatever script they are in."""
    if octets <= 64:
        assert parse_mailbox(f"{local}@example.org").local == local
    else:
        with pytest.raises(AddressError):
            parse_mailbox(f"{local}@example.org")


@pytest.mark.parametrize(("octets", "accepted"), [(254, True), (255, False)])
@pytest.mark.parametrize("template", ["{}", "Ann <{}>"])
def test_bounds_the_whole_address(octets, accepted, template):
    """254 octets pass, 255 do not (RFC 5321 section 4.5.3.1.3), with or without a name."""
    domain = "d" * 60 + "." + "e" * 60 + "." + "f" * 60 + "."
    address = "a" * 60 + "@" + domain
    address += "g" * (octets - len(address))
    if accepted:
        assert len(parse_mailbox(template.format(address)).address) == octets
    else:
        with pytest.raises(AddressError):
            parse_mailbox(template.format(address))


def test_bounds_an_internationalised_address_by_its_a_labels():
    """What counts is what goes on the wire: a short U-label that grows past the limit is refused."""
    long_label = "例" * 20
    address = f"{'a' * 60}@{'.'.join([long_label] * 8)}.jp"
    assert len(address) <= 254
    with pytest.raises(AddressError):
        parse_mailbox(address)


@pytest.mark.parametrize(("length", "accepted"), [(63, True), (64, False)])
def test_bounds_a_label(length, accepted):
    """A label of the domain has at most 63 octets."""
    text = f"ann@{'a' * length}.org"
    if accepted:
        assert parse_mailbox(text).domain == text[4:]
    else:
        with pytest.raises(AddressError):
            parse_mailbox(text)


@pytest.mark.parametrize(("length", "accepted"), [(MAX_DISPLAY_CHARS, True), (MAX_DISPLAY_CHARS + 1, False)])
@pytest.mark.parametrize("template", ["{} <ann@example.org>", '"{}" <ann@example.org>'])
def test_bounds_the_display_name(length, accepted, template):
    """A display name has a bound of its own."""
    text = template.format("n" * length)
    if accepted:
        assert len(parse_mailbox(text).display) == length
    else:
        with pytest.raises(AddressError):
            parse_mailbox(text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        " " * 20_000 + "x",
        "a " * 10_000,
        "a" + " " * 20_000 + '"',
        '"' + "\\" * 20_001,
        "a." * 10_000,
        "(" * 20_000,
    ],
    ids=["blanks", "words", "blanks then quote", "backslashes", "dots", "brackets"],
)
def test_a_hostile_text_does_not_hold_the_process(text):
    """Refusing takes steps in proportion to the length, so that one field can't stop every other request."""
    with pytest.raises(AddressError):
        parse_mailbox(text)


@pytest.mark.parametrize(
    "text", ["secret-ann@exa mple.org", "secret\x00@example.org", f"{'secret' * 50}@example.org"]
)
def test_the_error_never_repeats_the_address(text):
    """Errors are answered and logged, so they say what is wrong and not whose address it is."""
    with pytest.raises(AddressError) as caught:
        parse_mailbox(text)
    assert "secret" not in str(caught.value)


def test_says_which_addresses_need_smtputf8():
    """Only a local part outside ASCII needs SMTPUTF8; a domain has its A-labels."""
    assert parse_mailbox("用户@example.org").needs_smtputf8
    assert not parse_mailbox("ann@例え.jp").needs_smtputf8


@pytest.mark.parametrize(
    ("domain", "reserved", "sinkhole"),
    [
        ("a.test", True, False),
        ("sinkhole.test", True, True),
        ("a.sinkhole.test", True, True),
        ("notsinkhole.test", True, False),
        ("sinkhole.test.org", False, False),
        ("a.example", True, False),
        ("a.invalid", True, False),
        ("a.localhost", True, False),
        ("localhost", True, False),
        ("example.org", False, False),
        ("contest.org", False, False),
        ("latest", False, False),
    ],
)
def test_knows_reserved_names(domain, reserved, sinkhole):
    """RFC 2606 names are found by whole labels, and the sinkhole's among them."""
    assert is_reserved(domain) == reserved
    assert is_sinkhole(domain) == sinkhole


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_check_printable_knows_every_control(control):
    """The check that other rooms use refuses the same characters."""
    with pytest.raises(AddressError):
        check_printable(f"a{control}b")


def test_check_printable_lets_text_through():
    """Any script, and emoji, are printable."""
    check_printable("Ødegård 用户 🙂 =?utf-8?q?x?=")
