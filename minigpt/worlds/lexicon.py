"""The words of the translation grammar: English, Spanish and Italian, with their inflected forms.

An entry of a table is one word. It has a cell for each language, and a cell lists the word's forms
in the order that the comment above the table gives.

Source: this project's own tables.
Not here: inflection by rule, except of Italian participles. The tables hold every other form, so
that a reader can check them; a test compares them with the rules of Spanish and Italian grammar.
"""
import re
from typing import NamedTuple

LANGUAGES = ("spanish", "italian")


class Entry(NamedTuple):
    """One word, or one fixed expression, in three languages: the list of its forms in each."""
    english: list[str]
    spanish: list[str]
    italian: list[str]


def table(text: str) -> list[Entry]:
    """Entries on lines of their own or with ";" between them; "|" stands between languages.

    >>> table("cat cats | m gato gatos | m gatto gatti")[0].spanish
    ['m', 'gato', 'gatos']
    """
    entries = re.split("[;\n]", text.strip())
    return [Entry(*(cell.split() for cell in entry.split("|"))) for entry in entries]


# Nouns by kind. English: singular, plural. Spanish and Italian: gender (m or f), singular, plural.
NOUNS = {
    "person": table("""
        man men | m hombre hombres | m uomo uomini; woman women | f mujer mujeres | f donna donne
        boy boys | m chico chicos | m ragazzo ragazzi
        girl girls | f chica chicas | f ragazza ragazze; uncle uncles | m tío tíos | m zio zii
        aunt aunts | f tía tías | f zia zie; actor actors | m actor actores | m attore attori
        actress actresses | f actriz actrices | f attrice attrici
        student students | m estudiante estudiantes | m studente studenti
        nurse nurses | f enfermera enfermeras | f infermiera infermiere
        doctor doctors | m médico médicos | m medico medici
        grandmother grandmothers | f abuela abuelas | f nonna nonne"""),
    "animal": table("""
        cat cats | m gato gatos | m gatto gatti; dog dogs | m perro perros | m cane cani
        cow cows | f vaca vacas | f mucca mucche; bird birds | m pájaro pájaros | m uccello uccelli
        bee bees | f abeja abejas | f ape api
        squirrel squirrels | f ardilla ardillas | m scoiattolo scoiattoli
        monkey monkeys | m mono monos | f scimmia scimmie
        turtle turtles | f tortuga tortugas | f tartaruga tartarughe
        mouse mice | m ratón ratones | m topo topi; goat goats | f cabra cabras | f capra capre"""),
    "thing": table("""
        book books | m libro libros | m libro libri; car cars | m coche coches | f macchina macchine
        table tables | f mesa mesas | m tavolo tavoli
        flower flowers | f flor flores | m fiore fiori; key keys | f llave llaves | f chiave chiavi
        mirror mirrors | m espejo espejos | m specchio specchi
        backpack backpacks | f mochila mochilas | m zaino zaini
        hat hats | m sombrero sombreros | m cappello cappelli
        shirt shirts | f camisa camisas | f camicia camicie
        shoe shoes | m zapato zapatos | f scarpa scarpe
        pencil pencils | m lápiz lápices | f matita matite
        box boxes | f caja cajas | f scatola scatole"""),
    "place": table("""
        garden gardens | m jardín jardines | m giardino giardini
        house houses | f casa casas | f casa case
        school schools | f escuela escuelas | f scuola scuole
        hotel hotels | m hotel hoteles | m albergo alberghi
        church churches | f iglesia iglesias | f chiesa chiese
        city cities | f ciudad ciudades | f città città
        forest forests | m bosque bosques | m bosco boschi
        stadium stadiums | m estadio estadios | m stadio stadi"""),
}

# Adjectives. English: the one form. Spanish and Italian: masculine singular, feminine singular,
# masculine plural, feminine plural.
NATIONALITIES = table("""
    Italian | italiano italiana italianos italianas | italiano italiana italiani italiane
    Spanish | español española españoles españolas | spagnolo spagnola spagnoli spagnole
    French | francés francesa franceses francesas | francese francese francesi francesi
    German | alemán alemana alemanes alemanas | tedesco tedesca tedeschi tedesche""")
COLOURS = table("""
    black | negro negra negros negras | nero nera neri nere
    white | blanco blanca blancos blancas | bianco bianca bianchi bianche
    red | rojo roja rojos rojas | rosso rossa rossi rosse
    green | verde verde verdes verdes | verde verde verdi verdi
    blue | azul azul azules azules | blu blu blu blu
    yellow | amarillo amarilla amarillos amarillas | giallo gialla gialli gialle""")
MOODS = table("""
    tired | cansado cansada cansados cansadas | stanco stanca stanchi stanche
    hungry | hambriento hambrienta hambrientos hambrientas | affamato affamata affamati affamate
    happy | contento contenta contentos contentas | contento contenta contenti contente
    sick | enfermo enferma enfermos enfermas | malato malata malati malate
    sad | triste triste tristes tristes | triste triste tristi tristi
    nervous | nervioso nerviosa nerviosos nerviosas | nervoso nervosa nervosi nervose""")
CONDITIONS = table("""
    dirty | sucio sucia sucios sucias | sporco sporca sporchi sporche
    clean | limpio limpia limpios limpias | pulito pulita puliti pulite
    wet | mojado mojada mojados mojadas | bagnato bagnata bagnati bagnate
    empty | vacío vacía vacíos vacías | vuoto vuota vuoti vuote
    open | abierto abierta abiertos abiertas | aperto aperta aperti aperte""")

# The adjectives that a kind of noun may have: a state, which passes, and a quality, which lasts.
STATES = {"person": MOODS, "animal": MOODS, "thing": CONDITIONS, "place": CONDITIONS}
QUALITIES = {"person": NATIONALITIES, "animal": COLOURS, "thing": COLOURS, "place": COLOURS}

# Verbs, by the object that they take. English: present singular (he), present plural (they), past.
# Spanish: present singular and plural, past singular and plural. Italian: present singular and
# plural, then the past as «ha» or «è» and a participle; after «è» it agrees with the subject.
INTRANSITIVE = table("""
    sleeps sleep slept | duerme duermen durmió durmieron | dorme dormono ha dormito
    runs run ran | corre corren corrió corrieron | corre corrono ha corso
    plays play played | juega juegan jugó jugaron | gioca giocano ha giocato
    sings sing sang | canta cantan cantó cantaron | canta cantano ha cantato
    dances dance danced | baila bailan bailó bailaron | balla ballano ha ballato
    arrives arrive arrived | llega llegan llegó llegaron | arriva arrivano è arrivato
    falls fall fell | cae caen cayó cayeron | cade cadono è caduto""")
LIVING_OBJECT = table("""
    sees see saw | ve ven vio vieron | vede vedono ha visto
    finds find found | encuentra encuentran encontró encontraron | trova trovano ha trovato
    follows follow followed | sigue siguen siguió siguieron | segue seguono ha seguito
    watches watch watched | mira miran miró miraron | guarda guardano ha guardato""")
THING_OBJECT = LIVING_OBJECT + table("""
    buys buy bought | compra compran compró compraron | compra comprano ha comprato
    sells sell sold | vende venden vendió vendieron | vende vendono ha venduto
    loses lose lost | pierde pierden perdió perdieron | perde perdono ha perso
    hides hide hid | esconde esconden escondió escondieron | nasconde nascondono ha nascosto""")
CLAUSE_OBJECT = table("""
    says say said | dice dicen dijo dijeron | dice dicono ha detto
    writes write wrote | escribe escriben escribió escribieron | scrive scrivono ha scritto""")

# The verb "to be" in the present and in the past, each in singular and plural. Spanish has «estar»
# for a state and «ser» for a quality.
(BE_STATE,) = table("is are was were | está están estaba estaban | è sono era erano")
(BE_QUALITY,) = table("is are was were | es son era eran | è sono era erano")

# Determiners. English has two forms, singular and plural. Spanish and Italian have four, in the
# order of the adjectives.
THE, A, THIS = table("""
    the the | el la los las | il la i le
    a some | un una unos unas | un una dei delle
    this these | este esta estos estas | questo questa questi queste""")

# Words and expressions that have one form.
PREPOSITIONS = table("""
    in | en | in; near | cerca de | vicino a
    behind | detrás de | dietro; in front of | delante de | davanti a""")
CONJUNCTIONS = table("""
    and | y | e; but | pero | ma; because | porque | perché; although | aunque | anche se""")
WHO, THAT, NOT, VERY = table("""
    who | que | che; that | que | che; not | no | non; very | muy | molto""")
# Spanish puts «a» before a person or animal that is an object: «ve a la chica».
PERSONAL_A = Entry([], ["a"], [])
NOTHING = Entry([], [], [])

# Italian articles have other forms before a vowel, and before z or s and a consonant (lo studente).
BEFORE_VOWEL = {"il": "l'", "la": "l'", "i": "gli", "una": "un'", "dei": "degli"}
BEFORE_Z_OR_S = {"il": "lo", "i": "gli", "un": "uno", "dei": "degli"}

# A preposition and an article become one word: «de» and «el» become «del», and in Italian «in» and
# «lo» become «nello».
SPANISH_CONTRACTIONS = {("a", "el"): "al", ("de", "el"): "del"}
ENDINGS = {"il": "l", "lo": "llo", "l'": "ll'", "la": "lla", "i": "i", "gli": "gli", "le": "lle"}
ITALIAN_CONTRACTIONS = {(preposition, article): stem + ending
                        for preposition, stem in (("in", "ne"), ("a", "a"))
                        for article, ending in ENDINGS.items()}
CONTRACTIONS = {"spanish": SPANISH_CONTRACTIONS, "italian": ITALIAN_CONTRACTIONS}
