"""The words that reading an answer depends on, by what they do there."""


def _words(text: str, separator: str | None = None) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(separator) if part.strip())


def _in_order(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FUNCTIONS = _words(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc asin acos atan sinh cosh tanh coth sech csch arsinh "
    "arcosh artanh arcsinh arccosh arctanh log ln lg exp sqrt abs floor ceil gcd lcm max min det sgn Re Im arg"
)
# In the order of Unicode, in which sigma has two forms.
GREEK_ALPHABET = _in_order(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma sigma tau upsilon phi "
    "chi psi omega"
)
GREEK = (frozenset(GREEK_ALPHABET) - {"pi"}) | _words(
    "Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega ell hbar"
)

# Words of two and three letters. Other runs of so few letters are products of variables ...
SHORT_WORDS = _words(
    "and or if is are the of per for any all yes no odd not an to by at as we so in on has one two six ten day pm am egg "
    "men man pen bag box boy car cat dog cup sum set old age red day sq cu via but due the her his dollar you may can "
    "non who why how its was did get got let see now new end way say use our out top off own put run she him hit lot low "
    "big bad ask ago air arm bit few fly far fun god job kid law lie leg map mom dad nor oil pay pop raw rid sat sir sky "
    "son sun tax tea tie too try war wet win won yet zoo been does don isn ain up me my he be do go us it la le de der die "
    "das est les des una el los"
)
# ... and these are words only with blanks around them.
SPACED_WORDS = _words(
    "an as at is so to no or in on by we if am ha ft mi ms st pt qt up me my he be do go us it la le de el"
)
# Capitals that spell a word. Other runs of capitals are the points of a figure, or letters of choices.
CAPITAL_WORDS = _words("AM PM YES NO TRUE FALSE DNE ODD EVEN OR AND IF NONE MONDAY SUNDAY FRIDAY")

# Numbers from zero on, and tens from twenty on.
SMALL_NUMBERS = _in_order(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = _in_order("twenty thirty forty fifty sixty seventy eighty ninety")

# A remark begins with one of these words, behind a complete answer ...
REMARKS = _words("for where if when whenever with provided such unless otherwise given depending")
# ... and says of a variable nothing but in which of the usual sets it is, if it has no other words than these.
HARMLESS_WORDS = _words(
    "for any all every each real integer integers number numbers value values where is are be some arbitrary constant "
    "constants natural complex positive nonnegative with and reals whole parameter"
)
# With one of these words in it a remark in parentheses is part of the answer.
CONDITIONALS = _words("if when for otherwise even odd where or and")
# Words in front of an answer that do not change it, and words that do not change a phrase.
LEADERS = _words("either both about approximately roughly around nearly exactly only just simply")
ARTICLES = _words("the a an of")

NO_SOLUTION = _words(
    "no solution;no solutions;no real solution;no real solutions;no real roots;empty set;no such number;none exist"
    ";there are no solutions;there is no solution;no such numbers exist;无解",
    ";",
)
ALL_REALS = _words("all real numbers;all reals;all real number;all real;real numbers;any real number;reals", ";")

# Words that stand between or beside units and change nothing.
UNIT_FILLERS = _words("of in the a an total altogether each all about only left unit rad radian 个")
# Words that make a sentence of it, or another value, and are never units.
NO_UNITS = _words(
    "is are was were be been am has have had not no none more less fewer greater than times plus minus over into from to "
    "by if when where whenever for with such that which who since because as so then therefore hence thus but however "
    "otherwise else while until unless and or nor either neither both maybe perhaps possibly approximately exactly at "
    "least most between through up down half halve third fourth fifth sixth seventh eighth ninth tenth quarter negative "
    "positive even odd divided multiplied factorial modulo mod base binary infinity undefined zero one two three four five "
    "six seven eight nine ten i we you it he she they this these those there"
)

# Behind "the answer is" these words say something about an answer, and are none.
COMMENTS = _words(
    "correct right wrong incorrect consistent reasonable valid unique clear obvious obviously good fine verified "
    "confirmed simple easy integer number whole prime positive negative answer answers as follows below above here there "
    "found given known unclear unknown not now this that what it same the a an in of to indeed also still being based only "
    "always never written shown simplified likely probably simply just"
)
# What stands in the place of a gold answer where there is none.
PLACEHOLDERS = _words(
    "proof;nan;none;null;notfound;not found;n/a;unknown;tbd;todo;missing;no answer;not available;?;-;see solution;answer"
    ";answer not found;unsolved;open",
    ";",
)
