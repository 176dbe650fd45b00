"""How kindly a text speaks, by a small list of English words: good for comparing texts on one subject, for no more."""

import re

# Words that are said of people and what they do, each with its endings: "generous" is no "general". Ours.
GOOD = """
    able ably admir(e|es|ed|ing|able|ably|ation) bright(ly|er|est|ness)? brave(ly|ry|r|st)? calm(ly|ness|er)?
    capab(le|ly|ility|ilities) caring charm(s|ed|ing|ingly)? cheer(ful|fully|fulness|y)? clever(ly|ness|er|est)?
    confiden(t|tly|ce) creativ(e|ely|ity) curious(ly)? curiosity delight(s|ed|ful|fully)? dedicat(ed|ion)
    dependab(le|ly|ility) devot(ed|edly|ion) eager(ly|ness)? elegan(t|tly|ce) excel(s|led|lent|lently|lence)?
    expert(s|ly|ise)? friend(s|ly|liness|ship|ships)? generous(ly)? generosity gentle(ness|r|st)? gently gifted
    good(ness)? grace(ful|fully)? gracious(ly)? great(ly|ness|er|est)? happ(y|ily|iness|ier|iest) hardworking
    helpful(ly|ness)? honest(ly|y)? hopeful(ly)? impress(es|ed|ive|ively)? inspir(e|es|ed|ing|ation)
    intelligen(t|tly|ce) joy(s|ful|fully|ous)? kind(ly|ness|er|est) leader(s|ship)? loving(ly)? loyal(ly|ty)?
    outstanding(ly)? patience patiently peace(ful|fully)? pleas(ant|antly|ed|ing|ure) polite(ly|ness)?
    proud(ly)? reliab(le|ly|ility)
    resilien(t|ce) respect(s|ed|ful|fully|able)? skil(l|ls|led|ful|lful|lfully) smart(er|est|ly)? strong(ly|er|est)?
    succe(ed|eds|eded|eding|ss|sses|ssful|ssfully) support(s|ed|ing|ive)? talent(s|ed)? thoughtful(ly|ness)?
    trust(s|ed|ing|worthy)? warm(ly|th|er|est)? wise(ly|r|st)? wisdom wonderful(ly)?
"""
BAD = """
    abus(e|es|ed|er|ers|ing|ive) afraid aggress(ive|ively|ion) anger(ed)? angr(y|ily|ier|iest) anxi(ous|ously|ety)
    arrogan(t|tly|ce) bad(ly)? bitter(ly|ness)? burden(s|ed|some)? careless(ly|ness)? clums(y|ily|iness) cold(ly|ness)?
    conflict(s)? confus(ed|ing|ion) corrupt(ed|ion)? crime(s)? criminal(s)? cruel(ly|ty)? danger(s|ous|ously)?
    depress(ed|ing|ion) desperat(e|ely|ion) difficult(y|ies)? dirt(y|ier|iest)? dishonest(ly|y)? distrust(s|ed|ful)?
    drunk(en|ard|ards)? fail(s|ed|ing|ure|ures)? fear(s|ed|ful|fully|some)? fight(s|ing)? frustrat(ed|ing|ion)
    hat(e|es|ed|ing|red|eful) hopeless(ly|ness)? hostil(e|ity) ignor(e|es|ed|ing|ance|ant|antly) incapab(le|ly)
    incompeten(t|tly|ce) inferior(ity)? intoleran(t|ce) isolat(ed|ion) laz(y|ily|iness|ier|iest) lonel(y|iness)
    loner(s)? miser(y|able|ably) nervous(ly|ness)? poor(ly|er|est)? problem(s|atic)? rude(ly|ness|r|st)?
    sad(ly|ness|der|dest)? sick(ly|ness)? slow(ly|er|est|ness)? steal(s|ing)? stole(n)? strange(ly|st)?
    struggl(e|es|ed|ing) stupid(ly|ity)? suffer(s|ed|ing)? suspic(ion|ions|ious|iously) terror(ism|ist|ists)? theft(s)?
    threat(s|en|ens|ened|ening)? trouble(s|d|some)? unable unfriendly unhapp(y|ily|iness) unreliab(le|ly|ility)
    violen(t|tly|ce) weak(ly|er|est|ness|nesses)? worr(y|ies|ied|ying)
"""
_WORD = re.compile(r"[^\W\d_]+")
_GOOD = re.compile("|".join(GOOD.split()))
_BAD = re.compile("|".join(BAD.split()))


def valence(text: str) -> float:
    """Good words less bad ones, in a hundred words; 0 of a text without words."""
    words = [word.lower() for word in _WORD.findall(text)]
    total = sum(bool(_GOOD.fullmatch(word)) - bool(_BAD.fullmatch(word)) for word in words)
    return 100 * total / max(len(words), 1)


def num_words(text: str) -> int:
    return len(_WORD.findall(text))
