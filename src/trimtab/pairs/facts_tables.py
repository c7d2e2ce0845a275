"""The tables of the embedded data set: common knowledge, written down for this project.

Items come in couples whose answers are each other's wrong answers (see `facts.py`), written in one
of two ways:

- a `Table` asks one question of two keys: each line is `key: value | key: value`, and both values
  must be wrong for the other key;
- a `Twin` asks two questions of one key ("right after", "right before"): each line is
  `key | answer to the first | answer to the second`.

`{}` stands for the key in a question and for the value in an answer. A couple is the harder the
nearer its two rows are. The order of lines decides which couples go to which split.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """One question, asked of the two keys of each line."""

    topic: str
    question: str
    answer: str
    lines: str
    ask: str = "Question"


@dataclass(frozen=True)
class Twin:
    """Two questions (or requests), asked of the key of each line."""

    topic: str
    first: str
    second: str
    answer: str
    lines: str
    ask: str = "Question"


COMMON = (
    Table(
        "capitals",
        "What is the capital of {}?",
        "It is {}.",
        """
        France: Paris | Spain: Madrid
        Italy: Rome | Greece: Athens
        Germany: Berlin | Austria: Vienna
        Poland: Warsaw | Hungary: Budapest
        Portugal: Lisbon | Ireland: Dublin
        Sweden: Stockholm | Norway: Oslo
        Finland: Helsinki | Denmark: Copenhagen
        Belgium: Brussels | Romania: Bucharest
        Bulgaria: Sofia | Serbia: Belgrade
        Croatia: Zagreb | Slovakia: Bratislava
        Ukraine: Kyiv | Belarus: Minsk
        Estonia: Tallinn | Latvia: Riga
        Lithuania: Vilnius | Iceland: Reykjavik
        Russia: Moscow | Mongolia: Ulaanbaatar
        the United Kingdom: London | the Czech Republic: Prague
        Egypt: Cairo | Algeria: Algiers
        Kenya: Nairobi | Uganda: Kampala
        Ghana: Accra | Togo: Lome
        Zambia: Lusaka | Senegal: Dakar
        Tunisia: Tunis | Libya: Tripoli
        Zimbabwe: Harare | Angola: Luanda
        Rwanda: Kigali | Mozambique: Maputo
        Somalia: Mogadishu | Sudan: Khartoum
        Namibia: Windhoek | Botswana: Gaborone
        Madagascar: Antananarivo | Mali: Bamako
        Japan: Tokyo | China: Beijing
        Thailand: Bangkok | Vietnam: Hanoi
        South Korea: Seoul | North Korea: Pyongyang
        Iran: Tehran | Iraq: Baghdad
        Afghanistan: Kabul | Uzbekistan: Tashkent
        Nepal: Kathmandu | Bangladesh: Dhaka
        India: New Delhi | Malaysia: Kuala Lumpur
        Saudi Arabia: Riyadh | Jordan: Amman
        Lebanon: Beirut | Syria: Damascus
        Qatar: Doha | Oman: Muscat
        the Philippines: Manila | Laos: Vientiane
        Cuba: Havana | Jamaica: Kingston
        Peru: Lima | Chile: Santiago
        Colombia: Bogota | Ecuador: Quito
        Venezuela: Caracas | Nicaragua: Managua
        Uruguay: Montevideo | Paraguay: Asuncion
        Australia: Canberra | Fiji: Suva
        Albania: Tirana | Slovenia: Ljubljana
        Cyprus: Nicosia | Malta: Valletta
        """,
    ),
    Table(
        "symbols",
        "What is the chemical symbol for {}?",
        "The symbol is {}.",
        """
        hydrogen: H | helium: He
        carbon: C | calcium: Ca
        nitrogen: N | neon: Ne
        oxygen: O | osmium: Os
        sodium: Na | nickel: Ni
        potassium: K | phosphorus: P
        iron: Fe | fluorine: F
        copper: Cu | cobalt: Co
        silver: Ag | silicon: Si
        gold: Au | gallium: Ga
        lead: Pb | lithium: Li
        tin: Sn | titanium: Ti
        zinc: Zn | zirconium: Zr
        mercury: Hg | magnesium: Mg
        chlorine: Cl | chromium: Cr
        bromine: Br | barium: Ba
        iodine: I | iridium: Ir
        sulfur: S | selenium: Se
        argon: Ar | aluminium: Al
        boron: B | beryllium: Be
        uranium: U | tungsten: W
        manganese: Mn | molybdenum: Mo
        platinum: Pt | palladium: Pd
        radium: Ra | radon: Rn
        arsenic: As | antimony: Sb
        krypton: Kr | xenon: Xe
        """,
    ),
    Table(
        "continents",
        "On which continent is {}?",
        "It is in {}.",
        """
        Kenya: Africa | India: Asia
        Japan: Asia | Ghana: Africa
        Germany: Europe | Thailand: Asia
        Mexico: North America | Argentina: South America
        China: Asia | Italy: Europe
        Colombia: South America | Mali: Africa
        Norway: Europe | Ethiopia: Africa
        Angola: Africa | Bangladesh: Asia
        Mongolia: Asia | Zambia: Africa
        Tunisia: Africa | Pakistan: Asia
        Austria: Europe | Laos: Asia
        Honduras: North America | Belgium: Europe
        """,
    ),
    Table(
        "languages",
        "Which language do most people speak in {}?",
        "They speak {}.",
        """
        Egypt: Arabic | Brazil: Portuguese
        Mexico: Spanish | France: French
        Argentina: Spanish | Austria: German
        Australia: English | Cuba: Spanish
        Iraq: Arabic | Iran: Persian
        Greece: Greek | Hungary: Hungarian
        Chile: Spanish | Portugal: Portuguese
        Ireland: English | Saudi Arabia: Arabic
        Israel: Hebrew | Turkey: Turkish
        Poland: Polish | Bulgaria: Bulgarian
        """,
    ),
    Table(
        "young animals",
        "What is a young {} called?",
        "It is called a {}.",
        """
        dog: puppy | cat: kitten
        cow: calf | sheep: lamb
        horse: foal | goat: kid
        lion: cub | deer: fawn
        duck: duckling | goose: gosling
        frog: tadpole | butterfly: caterpillar
        pig: piglet | hen: chick
        kangaroo: joey | swan: cygnet
        """,
    ),
    Table(
        "kinds of animals",
        "What kind of animal is {}?",
        "It is {}.",
        """
        a whale: a mammal | a shark: a fish
        a salmon: a fish | a dolphin: a mammal
        a crocodile: a reptile | a tiger: a mammal
        a horse: a mammal | a duck: a bird
        a newt: an amphibian | a mosquito: an insect
        a toad: an amphibian | a parrot: a bird
        a carp: a fish | a mouse: a mammal
        a salamander: an amphibian | a herring: a fish
        a frog: an amphibian | a snake: a reptile
        """,
    ),
    Table(
        "animal sounds",
        "Which animal {}?",
        "It is a {}.",
        """
        barks: dog | meows: cat
        moos: cow | neighs: horse
        roars: lion | howls: wolf
        quacks: duck | hoots: owl
        croaks: frog | hisses: snake
        bleats: sheep | oinks: pig
        buzzes: bee | crows at dawn: rooster
        clucks: hen | brays: donkey
        """,
    ),
    Table(
        "colours",
        "What colour is {}?",
        "It is {}.",
        """
        snow: white | coal: black
        grass: green | blood: red
        a ripe banana: yellow | a clear sky at noon: blue
        a carrot: orange | milk: white
        a lemon: yellow | chocolate: brown
        a ripe tomato: red | a crow: black
        an emerald: green | a ruby: red
        a sapphire: blue | a flamingo: pink
        spinach: green | a polar bear: white
        soot: black | a pumpkin: orange
        an elephant: grey | a lime: green
        a sunflower: yellow | a raven: black
        """,
    ),
    Table(
        "quantities",
        "How many {}?",
        "The answer is {}.",
        """
        minutes are in an hour: 60 | hours are in a day: 24
        days are in a week: 7 | months are in a year: 12
        seconds are in a minute: 60 | weeks are in a year: 52
        centimetres are in a metre: 100 | metres are in a kilometre: 1000
        inches are in a foot: 12 | feet are in a yard: 3
        years are in a decade: 10 | years are in a century: 100
        grams are in a kilogram: 1000 | millimetres are in a centimetre: 10
        eggs are in a dozen: 12 | pairs are in a dozen: 6
        legs does a spider have: 8 | legs does an insect have: 6
        wheels does a bicycle have: 2 | wheels does a tricycle have: 3
        sides does a triangle have: 3 | sides does a square have: 4
        sides does a pentagon have: 5 | sides does a hexagon have: 6
        strings does a violin have: 4 | strings does a standard guitar have: 6
        players has a soccer team on the field: 11 | players has a basketball team on court: 5
        letters are in the English alphabet: 26 | cards are in a deck without jokers: 52
        fingers, thumb included, are on one hand: 5 | fingers, thumbs included, are on two hands: 10
        days are in April: 30 | days are in March: 31
        days are in June: 30 | days are in July: 31
        days are in September: 30 | days are in December: 31
        quarters make a whole: 4 | halves make a whole: 2
        zeros are in a million: 6 | zeros are in a thousand: 3
        degrees are in a full circle: 360 | degrees are in a right angle: 90
        squares are on a chessboard: 64 | chess pieces does each player start with: 16
        minutes are in half an hour: 30 | minutes are in a quarter of an hour: 15
        hours are in two days: 48 | days are in two weeks: 14
        legs does a dog have: 4 | legs does a bird have: 2
        """,
    ),
    Table(
        "work",
        "Who {} for a living?",
        "It is {}.",
        """
        flies aeroplanes: a pilot | sails the seas: a sailor
        bakes bread: a baker | sells meat: a butcher
        treats sick animals: a vet | looks after teeth: a dentist
        cuts hair: a barber | grows crops: a farmer
        puts out fires: a firefighter | arrests criminals: a policeman
        paints pictures: a painter | carves statues: a sculptor
        teaches in a school: a teacher | decides cases in a court: a judge
        writes novels: a novelist | writes poems: a poet
        designs buildings: an architect | repairs water pipes: a plumber
        mends shoes: a cobbler | makes suits: a tailor
        catches fish: a fisherman | digs for coal: a miner
        plays the piano: a pianist | plays the violin: a violinist
        studies stars: an astronomer | studies rocks: a geologist
        studies plants: a botanist | studies insects: an entomologist
        cooks in a restaurant: a chef | serves at tables: a waiter
        works with wood: a carpenter | works with stone: a mason
        keeps bees: a beekeeper | looks after sheep: a shepherd
        sells medicines: a pharmacist | sells flowers: a florist
        acts in plays: an actor | dances on stage: a dancer
        """,
    ),
    Table(
        "places",
        "In which country is {}?",
        "It is in {}.",
        """
        the city of Casablanca: Morocco | the city of Luxor: Egypt
        the city of Istanbul: Turkey | the city of Vladivostok: Russia
        the city of Krakow: Poland | the city of Porto: Portugal
        the city of Gothenburg: Sweden | the city of Bergen: Norway
        the city of Zurich: Switzerland | the city of Antwerp: Belgium
        the city of Lagos: Nigeria | the city of Mombasa: Kenya
        the city of Cape Town: South Africa | the city of Auckland: New Zealand
        the city of Salzburg: Austria | the city of Naples: Italy
        the city of Hiroshima: Japan | the city of Busan: South Korea
        the city of Cusco: Peru | the city of Guayaquil: Ecuador
        the city of Chennai: India | the city of Lahore: Pakistan
        the city of Tampere: Finland | the city of Aarhus: Denmark
        """,
    ),
    Table(
        "products",
        "What is {}?",
        "It is {}.",
        """
        2 times 6: 12 | 2 times 7: 14
        3 times 5: 15 | 3 times 6: 18
        3 times 7: 21 | 4 times 5: 20
        4 times 4: 16 | 4 times 6: 24
        5 times 5: 25 | 5 times 6: 30
        6 times 6: 36 | 5 times 7: 35
        6 times 7: 42 | 6 times 8: 48
        7 times 7: 49 | 8 times 5: 40
        7 times 8: 56 | 9 times 6: 54
        8 times 8: 64 | 9 times 7: 63
        9 times 9: 81 | 8 times 10: 80
        10 times 12: 120 | 11 times 11: 121
        """,
    ),
    Twin(
        "sums and differences",
        "What is the sum of {}?",
        "What is the difference between {}?",
        "It is {}.",
        """
        3 and 1 | 4 | 2
        5 and 2 | 7 | 3
        6 and 4 | 10 | 2
        7 and 3 | 10 | 4
        8 and 1 | 9 | 7
        9 and 4 | 13 | 5
        10 and 6 | 16 | 4
        12 and 5 | 17 | 7
        14 and 4 | 18 | 10
        15 and 6 | 21 | 9
        16 and 8 | 24 | 8
        18 and 9 | 27 | 9
        20 and 7 | 27 | 13
        25 and 5 | 30 | 20
        30 and 12 | 42 | 18
        33 and 11 | 44 | 22
        40 and 15 | 55 | 25
        50 and 20 | 70 | 30
        60 and 25 | 85 | 35
        75 and 15 | 90 | 60
        80 and 10 | 90 | 70
        90 and 5 | 95 | 85
        100 and 30 | 130 | 70
        100 and 45 | 145 | 55
        """,
    ),
    Twin(
        "larger numbers",
        "Which number is larger, {}?",
        "Which number is smaller, {}?",
        "It is {}.",
        """
        3 or 8 | 8 | 3
        9 or 4 | 9 | 4
        12 or 21 | 21 | 12
        71 or 17 | 71 | 17
        40 or 14 | 40 | 14
        25 or 52 | 52 | 25
        99 or 100 | 100 | 99
        63 or 36 | 63 | 36
        18 or 81 | 81 | 18
        90 or 19 | 90 | 19
        45 or 54 | 54 | 45
        200 or 150 | 200 | 150
        77 or 70 | 77 | 70
        310 or 301 | 310 | 301
        88 or 98 | 98 | 88
        500 or 50 | 500 | 50
        29 or 92 | 92 | 29
        67 or 76 | 76 | 67
        1000 or 999 | 1000 | 999
        34 or 43 | 43 | 34
        """,
    ),
    Twin(
        "numbers in order",
        "Which number comes right after {}?",
        "Which number comes right before {}?",
        "It is {}.",
        """
        4 | 5 | 3
        7 | 8 | 6
        9 | 10 | 8
        12 | 13 | 11
        15 | 16 | 14
        19 | 20 | 18
        24 | 25 | 23
        30 | 31 | 29
        39 | 40 | 38
        45 | 46 | 44
        50 | 51 | 49
        61 | 62 | 60
        70 | 71 | 69
        88 | 89 | 87
        99 | 100 | 98
        200 | 201 | 199
        """,
    ),
    Twin(
        "months",
        "Which month comes right after {}?",
        "Which month comes right before {}?",
        "It is {}.",
        """
        January | February | December
        March | April | February
        May | June | April
        July | August | June
        September | October | August
        November | December | October
        February | March | January
        April | May | March
        June | July | May
        August | September | July
        October | November | September
        December | January | November
        """,
    ),
    Twin(
        "days",
        "Which day comes right after {}?",
        "Which day comes right before {}?",
        "It is {}.",
        """
        Monday | Tuesday | Sunday
        Wednesday | Thursday | Tuesday
        Friday | Saturday | Thursday
        Sunday | Monday | Saturday
        Tuesday | Wednesday | Monday
        Thursday | Friday | Wednesday
        Saturday | Sunday | Friday
        """,
    ),
    Twin(
        "letters",
        "Which letter comes right after {} in the alphabet?",
        "Which letter comes right before {} in the alphabet?",
        "It is {}.",
        """
        B | C | A
        E | F | D
        H | I | G
        K | L | J
        N | O | M
        Q | R | P
        T | U | S
        W | X | V
        C | D | B
        F | G | E
        L | M | K
        O | P | N
        R | S | Q
        U | V | T
        X | Y | W
        Y | Z | X
        """,
    ),
    Twin(
        "spelling",
        'What is the first letter of the word "{}"?',
        'What is the last letter of the word "{}"?',
        "It is {}.",
        """
        table | T | E
        bird | B | D
        house | H | E
        water | W | R
        milk | M | K
        chair | C | R
        paper | P | R
        king | K | G
        lamp | L | P
        garden | G | N
        door | D | R
        apple | A | E
        """,
    ),
    Twin(
        "verbs",
        'What is the past tense of the verb "{}"?',
        'What is the past participle of the verb "{}"?',
        'It is "{}".',
        """
        go | went | gone
        see | saw | seen
        eat | ate | eaten
        drink | drank | drunk
        sing | sang | sung
        swim | swam | swum
        write | wrote | written
        ride | rode | ridden
        take | took | taken
        shake | shook | shaken
        know | knew | known
        grow | grew | grown
        fly | flew | flown
        throw | threw | thrown
        drive | drove | driven
        give | gave | given
        speak | spoke | spoken
        break | broke | broken
        wake | woke | woken
        steal | stole | stolen
        choose | chose | chosen
        freeze | froze | frozen
        rise | rose | risen
        hide | hid | hidden
        bite | bit | bitten
        wear | wore | worn
        tear | tore | torn
        draw | drew | drawn
        blow | blew | blown
        begin | began | begun
        fall | fell | fallen
        ring | rang | rung
        """,
    ),
    Twin(
        "adjectives",
        'What is the comparative of the adjective "{}"?',
        'What is the superlative of the adjective "{}"?',
        'It is "{}".',
        """
        big | bigger | biggest
        good | better | best
        small | smaller | smallest
        bad | worse | worst
        tall | taller | tallest
        hot | hotter | hottest
        cold | colder | coldest
        happy | happier | happiest
        easy | easier | easiest
        fast | faster | fastest
        long | longer | longest
        heavy | heavier | heaviest
        old | older | oldest
        young | younger | youngest
        strong | stronger | strongest
        thin | thinner | thinnest
        funny | funnier | funniest
        large | larger | largest
        dark | darker | darkest
        cheap | cheaper | cheapest
        """,
    ),
    Twin(
        "plurals",
        "Which word is plural, {}?",
        "Which word is singular, {}?",
        'It is "{}".',
        """
        "mouse" or "mice" | mice | mouse
        "teeth" or "tooth" | teeth | tooth
        "man" or "men" | men | man
        "feet" or "foot" | feet | foot
        "child" or "children" | children | child
        "geese" or "goose" | geese | goose
        "knife" or "knives" | knives | knife
        "leaves" or "leaf" | leaves | leaf
        "wolf" or "wolves" | wolves | wolf
        "cities" or "city" | cities | city
        "box" or "boxes" | boxes | box
        "women" or "woman" | women | woman
        """,
    ),
    Twin(
        "meanings",
        'Which word means the opposite of "{}"?',
        'Which word means the same as "{}"?',
        'It is "{}".',
        """
        big | small | large
        fast | slow | quick
        happy | sad | glad
        begin | end | start
        difficult | easy | hard
        rich | poor | wealthy
        clever | stupid | smart
        brave | cowardly | courageous
        loud | quiet | noisy
        sick | healthy | ill
        angry | calm | furious
        rude | polite | impolite
        ancient | modern | old
        shut | open | close
        cold | hot | chilly
        shout | whisper | yell
        strange | normal | odd
        huge | tiny | enormous
        correct | wrong | right
        ugly | beautiful | hideous
        repair | break | fix
        buy | sell | purchase
        empty | full | vacant
        dangerous | safe | risky
        hate | love | despise
        victory | defeat | triumph
        friend | enemy | pal
        thin | thick | slim
        wet | dry | damp
        lazy | hardworking | idle
        """,
    ),
    Twin(
        "weight",
        "Which is heavier, {}?",
        "Which is lighter, {}?",
        "It is {}.",
        """
        an elephant or a mouse | an elephant | a mouse
        a feather or a brick | a brick | a feather
        a car or a bicycle | a car | a bicycle
        a grape or a melon | a melon | a grape
        a whale or a dolphin | a whale | a dolphin
        a kitten or a cow | a cow | a kitten
        a truck or a spoon | a truck | a spoon
        a pillow or a piano | a piano | a pillow
        a horse or a rabbit | a horse | a rabbit
        a coin or a chair | a chair | a coin
        a ship or a canoe | a ship | a canoe
        a pea or a potato | a potato | a pea
        a train or a bus | a train | a bus
        a bee or an eagle | an eagle | a bee
        a bear or a squirrel | a bear | a squirrel
        a pencil or a table | a table | a pencil
        """,
    ),
    Twin(
        "speed",
        "Which is faster, {}?",
        "Which is slower, {}?",
        "It is {}.",
        """
        an aeroplane or a bus | an aeroplane | a bus
        a snail or a horse | a horse | a snail
        a cheetah or a tortoise | a cheetah | a tortoise
        a bicycle or a racing car | a racing car | a bicycle
        a rocket or a train | a rocket | a train
        a rowing boat or a speedboat | a speedboat | a rowing boat
        light or sound | light | sound
        a worm or a rabbit | a rabbit | a worm
        a falcon or a duck | a falcon | a duck
        a tractor or a jet | a jet | a tractor
        """,
    ),
    Twin(
        "size",
        "Which is bigger, {}?",
        "Which is smaller, {}?",
        "It is {}.",
        """
        the Sun or the Moon | the Sun | the Moon
        a village or a city | a city | a village
        an ocean or a lake | an ocean | a lake
        an ant or a dog | a dog | an ant
        a mountain or a hill | a mountain | a hill
        a cup or a bathtub | a bathtub | a cup
        Jupiter or Mars | Jupiter | Mars
        Belgium or Russia | Russia | Belgium
        a palace or a hut | a palace | a hut
        Portugal or Brazil | Brazil | Portugal
        a pumpkin or a cherry | a pumpkin | a cherry
        a hamster or a horse | a horse | a hamster
        a tree or a leaf | a tree | a leaf
        a shrimp or a shark | a shark | a shrimp
        Canada or Cuba | Canada | Cuba
        Pluto or the Earth | the Earth | Pluto
        """,
    ),
    Twin(
        "duration and length",
        "Which is longer, {}?",
        "Which is shorter, {}?",
        "It is {}.",
        """
        a week or a month | a month | a week
        an hour or a minute | an hour | a minute
        a day or a week | a week | a day
        a decade or a year | a decade | a year
        a second or a minute | a minute | a second
        a century or a decade | a century | a decade
        a day or a month | a month | a day
        a kilometre or a metre | a kilometre | a metre
        an inch or a mile | a mile | an inch
        a weekend or a lifetime | a lifetime | a weekend
        a centimetre or a kilometre | a kilometre | a centimetre
        the Nile or the Thames | the Nile | the Thames
        """,
    ),
    Twin(
        "inventions",
        "Which was invented earlier, {}?",
        "Which was invented later, {}?",
        "It is {}.",
        """
        the wheel or the telephone | the wheel | the telephone
        the television or the printing press | the printing press | the television
        the radio or the internet | the radio | the internet
        the smartphone or the steam engine | the steam engine | the smartphone
        the bicycle or the aeroplane | the bicycle | the aeroplane
        the computer or the clock | the clock | the computer
        paper or plastic | paper | plastic
        the laser or the telescope | the telescope | the laser
        the candle or the light bulb | the candle | the light bulb
        email or the telegraph | the telegraph | email
        gunpowder or the atomic bomb | gunpowder | the atomic bomb
        """,
    ),
    Twin(
        "heat",
        "Which is hotter, {}?",
        "Which is colder, {}?",
        "It is {}.",
        """
        ice or steam | steam | ice
        the Sun or the Moon | the Sun | the Moon
        a freezer or an oven | an oven | a freezer
        boiling water or snow | boiling water | snow
        rain or lava | lava | rain
        the Sahara or Antarctica | the Sahara | Antarctica
        """,
    ),
    Twin(
        "male and female",
        "What is a male {} called?",
        "What is a female {} called?",
        "It is called a {}.",
        """
        sibling | brother | sister
        parent | father | mother
        horse | stallion | mare
        spouse | husband | wife
        monarch | king | queen
        chicken | rooster | hen
        sheep | ram | ewe
        grandparent | grandfather | grandmother
        deer | stag | doe
        sibling of a parent | uncle | aunt
        child of a sibling | nephew | niece
        child of a king | prince | princess
        pig | boar | sow
        lion | lion | lioness
        """,
    ),
    Twin(
        "great cities",
        "Which city is the capital of {}?",
        "Which city is the largest in {}?",
        "It is {}.",
        """
        Canada | Ottawa | Toronto
        Turkey | Ankara | Istanbul
        Brazil | Brasilia | Sao Paulo
        the United States | Washington | New York
        Pakistan | Islamabad | Karachi
        Nigeria | Abuja | Lagos
        Morocco | Rabat | Casablanca
        New Zealand | Wellington | Auckland
        Switzerland | Bern | Zurich
        Scotland | Edinburgh | Glasgow
        Kazakhstan | Astana | Almaty
        """,
    ),
)
"""Topics that `train`, `dev` and `test` share."""

HARDER = (
    Table(
        "state capitals",
        "What is the capital of the US state of {}?",
        "It is {}.",
        """
        Texas: Austin | Ohio: Columbus
        Georgia: Atlanta | Florida: Tallahassee
        California: Sacramento | Oregon: Salem
        Washington: Olympia | Idaho: Boise
        Nevada: Carson City | Utah: Salt Lake City
        Arizona: Phoenix | Colorado: Denver
        New Mexico: Santa Fe | Louisiana: Baton Rouge
        Montana: Helena | Wyoming: Cheyenne
        Nebraska: Lincoln | Kansas: Topeka
        Iowa: Des Moines | Minnesota: Saint Paul
        Wisconsin: Madison | Illinois: Springfield
        Michigan: Lansing | Indiana: Indianapolis
        Kentucky: Frankfort | Tennessee: Nashville
        Alabama: Montgomery | Mississippi: Jackson
        South Carolina: Columbia | North Carolina: Raleigh
        Virginia: Richmond | Maryland: Annapolis
        Pennsylvania: Harrisburg | New York: Albany
        New Jersey: Trenton | Delaware: Dover
        Connecticut: Hartford | Rhode Island: Providence
        Massachusetts: Boston | New Hampshire: Concord
        Vermont: Montpelier | Maine: Augusta
        Alaska: Juneau | Hawaii: Honolulu
        """,
    ),
    Table(
        "authors",
        "Who wrote {}?",
        "It was {}.",
        """
        Hamlet: William Shakespeare | Oliver Twist: Charles Dickens
        Pride and Prejudice: Jane Austen | Jane Eyre: Charlotte Bronte
        War and Peace: Leo Tolstoy | Crime and Punishment: Fyodor Dostoevsky
        Animal Farm: George Orwell | Brave New World: Aldous Huxley
        The Old Man and the Sea: Ernest Hemingway | The Grapes of Wrath: John Steinbeck
        The Great Gatsby: Scott Fitzgerald | To Kill a Mockingbird: Harper Lee
        Moby-Dick: Herman Melville | Huckleberry Finn: Mark Twain
        Frankenstein: Mary Shelley | Dracula: Bram Stoker
        Don Quixote: Miguel de Cervantes | The Divine Comedy: Dante Alighieri
        The Odyssey: Homer | The Aeneid: Virgil
        The Metamorphosis: Franz Kafka | The Stranger: Albert Camus
        Madame Bovary: Gustave Flaubert | Les Miserables: Victor Hugo
        Treasure Island: Robert Louis Stevenson | The Jungle Book: Rudyard Kipling
        The Time Machine: H. G. Wells | Around the World in Eighty Days: Jules Verne
        The Picture of Dorian Gray: Oscar Wilde | Ulysses: James Joyce
        Wuthering Heights: Emily Bronte | Middlemarch: George Eliot
        The Cherry Orchard: Anton Chekhov | A Doll's House: Henrik Ibsen
        Peter Pan: J. M. Barrie | The Hobbit: J. R. R. Tolkien
        The Catcher in the Rye: J. D. Salinger | On the Road: Jack Kerouac
        The Three Musketeers: Alexandre Dumas | The Red and the Black: Stendhal
        Alice's Adventures in Wonderland: Lewis Carroll | Gulliver's Travels: Jonathan Swift
        Robinson Crusoe: Daniel Defoe | Ivanhoe: Walter Scott
        Heart of Darkness: Joseph Conrad | A Passage to India: E. M. Forster
        Mrs Dalloway: Virginia Woolf | Lady Chatterley's Lover: D. H. Lawrence
        The Trial: Franz Kafka | The Magic Mountain: Thomas Mann
        Paradise Lost: John Milton | The Canterbury Tales: Geoffrey Chaucer
        Candide: Voltaire | Faust: Goethe
        Waiting for Godot: Samuel Beckett | Pygmalion: George Bernard Shaw
        """,
    ),
    Table(
        "works of art",
        "Which artist painted {}?",
        "It was {}.",
        """
        the Mona Lisa: Leonardo da Vinci | The Starry Night: Vincent van Gogh
        Guernica: Pablo Picasso | The Scream: Edvard Munch
        Girl with a Pearl Earring: Jan Vermeer | The Garden of Earthly Delights: Hieronymus Bosch
        The Persistence of Memory: Salvador Dali | Impression, Sunrise: Claude Monet
        The Birth of Venus: Sandro Botticelli | The School of Athens: Raphael
        """,
    ),
    Table(
        "music",
        "Which composer wrote {}?",
        "It was {}.",
        """
        The Magic Flute: Mozart | the Moonlight Sonata: Beethoven
        The Four Seasons: Vivaldi | the Brandenburg Concertos: Bach
        Swan Lake: Tchaikovsky | The Flying Dutchman: Wagner
        Carmen: Bizet | La Traviata: Verdi
        Bolero: Ravel | Clair de Lune: Debussy
        """,
    ),
    Table(
        "atomic numbers",
        "What is the atomic number of {}?",
        "It is {}.",
        """
        hydrogen: 1 | helium: 2
        lithium: 3 | beryllium: 4
        boron: 5 | carbon: 6
        nitrogen: 7 | oxygen: 8
        fluorine: 9 | neon: 10
        sodium: 11 | magnesium: 12
        aluminium: 13 | silicon: 14
        phosphorus: 15 | sulfur: 16
        chlorine: 17 | argon: 18
        potassium: 19 | calcium: 20
        iron: 26 | cobalt: 27
        copper: 29 | zinc: 30
        silver: 47 | tin: 50
        gold: 79 | mercury: 80
        scandium: 21 | titanium: 22
        vanadium: 23 | chromium: 24
        manganese: 25 | nickel: 28
        gallium: 31 | germanium: 32
        arsenic: 33 | selenium: 34
        bromine: 35 | krypton: 36
        rubidium: 37 | strontium: 38
        iodine: 53 | xenon: 54
        caesium: 55 | barium: 56
        tungsten: 74 | platinum: 78
        lead: 82 | bismuth: 83
        radon: 86 | radium: 88
        thorium: 90 | uranium: 92
        neptunium: 93 | plutonium: 94
        """,
    ),
    Table(
        "Roman numerals",
        "Which number is the Roman numeral {}?",
        "It is {}.",
        """
        IV: 4 | VI: 6
        IX: 9 | XI: 11
        XIV: 14 | XVI: 16
        XIX: 19 | XXI: 21
        XL: 40 | LX: 60
        XC: 90 | CX: 110
        L: 50 | C: 100
        D: 500 | M: 1000
        VII: 7 | VIII: 8
        XIII: 13 | XVII: 17
        XXIV: 24 | XXVI: 26
        XXIX: 29 | XXXI: 31
        XLV: 45 | LV: 55
        LXX: 70 | LXXX: 80
        CD: 400 | DC: 600
        CM: 900 | MC: 1100
        """,
    ),
    Table(
        "French",
        'What does the French word "{}" mean?',
        'It means "{}".',
        """
        chien: dog | chat: cat
        maison: house | jardin: garden
        livre: book | stylo: pen
        eau: water | lait: milk
        rouge: red | vert: green
        soleil: sun | lune: moon
        pomme: apple | poire: pear
        jour: day | nuit: night
        pain: bread | fromage: cheese
        frère: brother | soeur: sister
        roi: king | reine: queen
        porte: door | fenêtre: window
        neige: snow | pluie: rain
        oeil: eye | oreille: ear
        petit: small | grand: big
        chaud: hot | froid: cold
        mer: sea | montagne: mountain
        école: school | église: church
        cheval: horse | vache: cow
        fleur: flower | arbre: tree
        matin: morning | soir: evening
        jambe: leg | bras: arm
        sel: salt | sucre: sugar
        avion: aeroplane | bateau: boat
        """,
    ),
    Table(
        "Spanish",
        'What does the Spanish word "{}" mean?',
        'It means "{}".',
        """
        perro: dog | gato: cat
        casa: house | calle: street
        libro: book | mesa: table
        agua: water | leche: milk
        azul: blue | negro: black
        cielo: sky | tierra: earth
        hermano: brother | padre: father
        mano: hand | pie: foot
        pan: bread | queso: cheese
        rey: king | reina: queen
        puerta: door | ventana: window
        nieve: snow | lluvia: rain
        ojo: eye | oreja: ear
        rojo: red | verde: green
        caballo: horse | vaca: cow
        flor: flower | árbol: tree
        lunes: Monday | martes: Tuesday
        sol: sun | luna: moon
        manzana: apple | naranja: orange
        pierna: leg | brazo: arm
        sal: salt | azúcar: sugar
        iglesia: church | escuela: school
        cuchillo: knife | cuchara: spoon
        blanco: white | amarillo: yellow
        """,
    ),
    Table(
        "Greek gods",
        "Who was the Greek {}?",
        "It was {}.",
        """
        god of the sea: Poseidon | god of war: Ares
        goddess of wisdom: Athena | goddess of love: Aphrodite
        king of the gods: Zeus | messenger of the gods: Hermes
        god of wine: Dionysus | god of the underworld: Hades
        """,
    ),
    Table(
        "Roman gods",
        "Who was the Roman {}?",
        "It was {}.",
        """
        god of the sea: Neptune | god of war: Mars
        goddess of love: Venus | goddess of the hunt: Diana
        king of the gods: Jupiter | messenger of the gods: Mercury
        """,
    ),
    Table(
        "years",
        "In which year did {}?",
        "It was in {}.",
        """
        the First World War begin: 1914 | the First World War end: 1918
        the Second World War begin in Europe: 1939 | the Second World War end: 1945
        the French Revolution begin: 1789 | the United States declare independence: 1776
        the Berlin Wall fall: 1989 | people first land on the Moon: 1969
        Columbus first reach the Americas: 1492 | the Battle of Hastings take place: 1066
        the Titanic sink: 1912 | the Battle of Waterloo take place: 1815
        the Great Fire of London break out: 1666 | the Great Plague of London begin: 1665
        Queen Victoria come to the throne: 1837 | Queen Victoria die: 1901
        the American Civil War begin: 1861 | the American Civil War end: 1865
        the Russian Revolution take place: 1917 | the Soviet Union break up: 1991
        Napoleon crown himself emperor: 1804 | Napoleon invade Russia: 1812
        the Wall Street Crash happen: 1929 | the attack on Pearl Harbor happen: 1941
        Yuri Gagarin fly into space: 1961 | Sputnik 1 go into orbit: 1957
        King John seal Magna Carta: 1215 | Constantinople fall to the Ottomans: 1453
        the Chernobyl disaster happen: 1986 | Nelson Mandela walk free from prison: 1990
        India become independent: 1947 | the Suez Crisis take place: 1956
        """,
    ),
    Table(
        "squares",
        "What is the square of {}?",
        "It is {}.",
        """
        11: 121 | 12: 144
        13: 169 | 14: 196
        15: 225 | 16: 256
        20: 400 | 30: 900
        17: 289 | 18: 324
        19: 361 | 21: 441
        25: 625 | 35: 1225
        40: 1600 | 50: 2500
        """,
    ),
    Table(
        "currencies",
        "What is the currency of {}?",
        "It is the {}.",
        """
        Japan: yen | China: yuan
        India: rupee | Thailand: baht
        Russia: rouble | Poland: zloty
        Israel: shekel | Vietnam: dong
        South Africa: rand | Nigeria: naira
        Sweden: krona | Switzerland: franc
        Brazil: real | Peru: sol
        Hungary: forint | Turkey: lira
        South Korea: won | Malaysia: ringgit
        Kenya: shilling | Ghana: cedi
        Morocco: dirham | Iraq: dinar
        Bangladesh: taka | Ukraine: hryvnia
        """,
    ),
    Table(
        "German",
        'What does the German word "{}" mean?',
        'It means "{}".',
        """
        Hund: dog | Katze: cat
        Haus: house | Garten: garden
        Buch: book | Tisch: table
        Wasser: water | Milch: milk
        Brot: bread | Käse: cheese
        Sonne: sun | Mond: moon
        Apfel: apple | Birne: pear
        Tag: day | Nacht: night
        Bruder: brother | Schwester: sister
        Tür: door | Fenster: window
        Schnee: snow | Regen: rain
        Auge: eye | Ohr: ear
        Pferd: horse | Kuh: cow
        Blume: flower | Baum: tree
        Messer: knife | Löffel: spoon
        Schule: school | Kirche: church
        """,
    ),
    Table(
        "Italian",
        'What does the Italian word "{}" mean?',
        'It means "{}".',
        """
        cane: dog | gatto: cat
        acqua: water | latte: milk
        pane: bread | formaggio: cheese
        fratello: brother | sorella: sister
        finestra: window | tavolo: table
        neve: snow | pioggia: rain
        occhio: eye | orecchio: ear
        cavallo: horse | mucca: cow
        fiore: flower | albero: tree
        giorno: day | notte: night
        chiesa: church | scuola: school
        coltello: knife | cucchiaio: spoon
        """,
    ),
    Table(
        "Latin",
        'What does the Latin word "{}" mean?',
        'It means "{}".',
        """
        aqua: water | ignis: fire
        terra: earth | caelum: sky
        rex: king | regina: queen
        pater: father | mater: mother
        canis: dog | equus: horse
        sol: sun | luna: moon
        bellum: war | pax: peace
        dies: day | nox: night
        """,
    ),
    Table(
        "divisions",
        "What is {}?",
        "It is {}.",
        """
        21 divided by 3: 7 | 24 divided by 3: 8
        24 divided by 4: 6 | 28 divided by 4: 7
        45 divided by 5: 9 | 40 divided by 5: 8
        36 divided by 9: 4 | 42 divided by 6: 7
        48 divided by 8: 6 | 54 divided by 6: 9
        49 divided by 7: 7 | 56 divided by 7: 8
        63 divided by 7: 9 | 64 divided by 8: 8
        72 divided by 8: 9 | 72 divided by 9: 8
        77 divided by 7: 11 | 96 divided by 8: 12
        60 divided by 12: 5 | 72 divided by 12: 6
        90 divided by 6: 15 | 96 divided by 6: 16
        60 divided by 15: 4 | 75 divided by 15: 5
        """,
    ),
    Table(
        "binary numbers",
        "Which decimal number is the binary number {}?",
        "It is {}.",
        """
        10: 2 | 11: 3
        100: 4 | 101: 5
        110: 6 | 111: 7
        1000: 8 | 1001: 9
        1010: 10 | 1011: 11
        1100: 12 | 1101: 13
        1110: 14 | 1111: 15
        10000: 16 | 100000: 32
        """,
    ),
    Table(
        "percentages",
        "What is {}?",
        "It is {}.",
        """
        10 percent of 250: 25 | 20 percent of 250: 50
        25 percent of 80: 20 | 50 percent of 80: 40
        5 percent of 200: 10 | 15 percent of 200: 30
        75 percent of 40: 30 | 60 percent of 40: 24
        1 percent of 700: 7 | 2 percent of 700: 14
        30 percent of 90: 27 | 40 percent of 90: 36
        """,
    ),
    Table(
        "chemical formulas",
        "What is the chemical formula of {}?",
        "It is {}.",
        """
        water: H2O | hydrogen peroxide: H2O2
        carbon dioxide: CO2 | carbon monoxide: CO
        methane: CH4 | ammonia: NH3
        ethane: C2H6 | propane: C3H8
        table salt: NaCl | hydrogen chloride: HCl
        sulfuric acid: H2SO4 | nitric acid: HNO3
        benzene: C6H6 | butane: C4H10
        nitrous oxide: N2O | nitrogen dioxide: NO2
        """,
    ),
    Table(
        "units",
        "Which quantity is measured in {}?",
        "It is {}.",
        """
        volts: voltage | amperes: electric current
        ohms: electrical resistance | watts: power
        newtons: force | joules: energy
        hertz: frequency | pascals: pressure
        kelvins: temperature | candelas: luminous intensity
        coulombs: electric charge | farads: capacitance
        light-years: distance | knots: speed
        acres: area | litres: volume
        """,
    ),
    Table(
        "scientists",
        "Which scientist {}?",
        "It was {}.",
        """
        stated the law of universal gravitation: Isaac Newton | stated the theory of general relativity: Albert Einstein
        wrote On the Origin of Species: Charles Darwin | wrote A Brief History of Time: Stephen Hawking
        discovered penicillin: Alexander Fleming | discovered X-rays: Wilhelm Röntgen
        discovered radium: Marie Curie | discovered oxygen: Joseph Priestley
        drew up the periodic table: Dmitri Mendeleev | bred peas to study heredity: Gregor Mendel
        stated the laws of planetary motion: Johannes Kepler | put the Sun at the centre of the universe: Nicolaus Copernicus
        made the first vaccine against smallpox: Edward Jenner | made the first vaccine against rabies: Louis Pasteur
        stated the uncertainty principle: Werner Heisenberg | stated the exclusion principle: Wolfgang Pauli
        """,
    ),
    Table(
        "Greek letters",
        "What is the {} letter of the Greek alphabet?",
        "It is {}.",
        """
        first: alpha | second: beta
        third: gamma | fourth: delta
        fifth: epsilon | sixth: zeta
        seventh: eta | eighth: theta
        ninth: iota | tenth: kappa
        eleventh: lambda | twelfth: mu
        thirteenth: nu | fourteenth: xi
        sixteenth: pi | seventeenth: rho
        eighteenth: sigma | nineteenth: tau
        twenty-third: psi | twenty-fourth: omega
        """,
    ),
    Table(
        "spelling alphabet",
        "Which word stands for the letter {} in the NATO spelling alphabet?",
        "It is {}.",
        """
        A: Alfa | B: Bravo
        C: Charlie | D: Delta
        E: Echo | F: Foxtrot
        G: Golf | H: Hotel
        I: India | J: Juliett
        K: Kilo | L: Lima
        M: Mike | N: November
        O: Oscar | P: Papa
        Q: Quebec | R: Romeo
        S: Sierra | T: Tango
        U: Uniform | V: Victor
        W: Whiskey | X: X-ray
        Y: Yankee | Z: Zulu
        """,
    ),
    Table(
        "presidents",
        "Who was the {} president of the United States?",
        "It was {}.",
        """
        first: George Washington | second: John Adams
        third: Thomas Jefferson | fourth: James Madison
        fifth: James Monroe | seventh: Andrew Jackson
        16th: Abraham Lincoln | 17th: Andrew Johnson
        18th: Ulysses S. Grant | 26th: Theodore Roosevelt
        27th: William Howard Taft | 28th: Woodrow Wilson
        31st: Herbert Hoover | 32nd: Franklin D. Roosevelt
        33rd: Harry S. Truman | 34th: Dwight D. Eisenhower
        35th: John F. Kennedy | 36th: Lyndon B. Johnson
        37th: Richard Nixon | 38th: Gerald Ford
        39th: Jimmy Carter | 40th: Ronald Reagan
        42nd: Bill Clinton | 44th: Barack Obama
        """,
    ),
    Table(
        "planets",
        "Which is the {} planet from the Sun?",
        "It is {}.",
        """
        first: Mercury | second: Venus
        third: Earth | fourth: Mars
        fifth: Jupiter | sixth: Saturn
        seventh: Uranus | eighth: Neptune
        """,
    ),
    Table(
        "provincial capitals",
        "What is the capital of the Canadian province of {}?",
        "It is {}.",
        """
        Ontario: Toronto | British Columbia: Victoria
        Alberta: Edmonton | Saskatchewan: Regina
        Manitoba: Winnipeg | Nova Scotia: Halifax
        New Brunswick: Fredericton | Prince Edward Island: Charlottetown
        """,
    ),
)
"""Topics of `oos`."""

MANNERS = (
    Twin(
        "letter case",
        'Write "{}" in capital letters.',
        'Write "{}" in small letters.',
        "{}",
        """
        Green Table | GREEN TABLE | green table
        Open Door | OPEN DOOR | open door
        Long River | LONG RIVER | long river
        New Shoes | NEW SHOES | new shoes
        Warm Bread | WARM BREAD | warm bread
        Tall Tree | TALL TREE | tall tree
        Quiet Street | QUIET STREET | quiet street
        Old Bridge | OLD BRIDGE | old bridge
        Red Apple | RED APPLE | red apple
        Small Garden | SMALL GARDEN | small garden
        """,
        ask="Request",
    ),
    Twin(
        "order of words",
        "List in alphabetical order: {}.",
        "List in reverse alphabetical order: {}.",
        "{}",
        """
        pear and apple | apple, pear | pear, apple
        lamp and chair | chair, lamp | lamp, chair
        boat and train | boat, train | train, boat
        rain and cloud | cloud, rain | rain, cloud
        knife and spoon | knife, spoon | spoon, knife
        violin and drum | drum, violin | violin, drum
        goose and horse | goose, horse | horse, goose
        window and door | door, window | window, door
        bread and milk | bread, milk | milk, bread
        shirt and hat | hat, shirt | shirt, hat
        """,
        ask="Request",
    ),
    Twin(
        "greeting",
        "Greet {} in a formal way.",
        "Greet {} in a casual way.",
        "{}",
        """
        Anna Smith | Good morning, Ms Smith. | Hey there, Anna!
        Peter Brown | Good morning, Mr Brown. | Hey there, Peter!
        Laura Jones | Good evening, Ms Jones. | Hi, Laura!
        David Miller | Good evening, Mr Miller. | Hi, David!
        Julia Clark | Good afternoon, Ms Clark. | What's up, Julia?
        Simon Green | Good afternoon, Mr Green. | What's up, Simon?
        Maria Lopez | How do you do, Ms Lopez? | Hiya, Maria!
        Oliver King | How do you do, Mr King? | Hiya, Oliver!
        Helen Young | A pleasure to meet you, Ms Young. | Yo, Helen, good to see you!
        Martin Hill | A pleasure to meet you, Mr Hill. | Yo, Martin, good to see you!
        """,
        ask="Request",
    ),
    Twin(
        "tense",
        "Put into the past tense: {}.",
        "Put into the future tense: {}.",
        "{}",
        """
        Tom walks home | Tom walked home. | Tom will walk home.
        Sara paints the fence | Sara painted the fence. | Sara will paint the fence.
        we visit our aunt | We visited our aunt. | We will visit our aunt.
        the baby laughs | The baby laughed. | The baby will laugh.
        they clean the kitchen | They cleaned the kitchen. | They will clean the kitchen.
        I call my sister | I called my sister. | I will call my sister.
        the train stops here | The train stopped here. | The train will stop here.
        she opens the letter | She opened the letter. | She will open the letter.
        he waters the plants | He watered the plants. | He will water the plants.
        the girls play outside | The girls played outside. | The girls will play outside.
        """,
        ask="Request",
    ),
    Twin(
        "digits or words",
        "Write with digits: {}.",
        "Write with words only: {}.",
        "{}",
        """
        two (2) cups | 2 cups | two cups
        three (3) birds | 3 birds | three birds
        four (4) letters | 4 letters | four letters
        five (5) coins | 5 coins | five coins
        six (6) books | 6 books | six books
        seven (7) days | 7 days | seven days
        eight (8) chairs | 8 chairs | eight chairs
        nine (9) stamps | 9 stamps | nine stamps
        ten (10) tickets | 10 tickets | ten tickets
        twelve (12) eggs | 12 eggs | twelve eggs
        """,
        ask="Request",
    ),
    Twin(
        "question or statement",
        "Write as a question: Tom and {}.",
        "Write as a statement: Tom and {}.",
        "{}",
        """
        being at home | Is Tom at home? | Tom is at home.
        being ready | Is Tom ready? | Tom is ready.
        being tired | Is Tom tired? | Tom is tired.
        being on the bus | Is Tom on the bus? | Tom is on the bus.
        being hungry | Is Tom hungry? | Tom is hungry.
        being at work | Is Tom at work? | Tom is at work.
        being in the garden | Is Tom in the garden? | Tom is in the garden.
        being late again | Is Tom late again? | Tom is late again.
        being your cousin | Is Tom your cousin? | Tom is your cousin.
        being in the choir | Is Tom in the choir? | Tom is in the choir.
        """,
        ask="Request",
    ),
    Twin(
        "politeness",
        "Ask politely for {}.",
        "Rudely demand {}.",
        "{}",
        """
        the salt | Could I have the salt, please? | Hand over the salt, now.
        the bill | Could I have the bill, please? | Hand over the bill, now.
        a glass of water | May I have some water, please? | Give me water, quick.
        a seat | May I sit here, please? | Move, I want that seat.
        some help | Would you kindly help me? | Come here and help me.
        the newspaper | May I read the newspaper, please? | Give me that newspaper.
        silence | Could you please be quiet? | Shut up, all of you.
        a pen | Could you lend me a pen, please? | Give me your pen.
        an answer | Would you kindly answer me? | Answer me, right now.
        more time | Could I have more time, please? | Stop rushing me, I say.
        """,
        ask="Request",
    ),
    Twin(
        "accepting or declining",
        "Accept this invitation: {}.",
        "Decline this invitation: {}.",
        "{}",
        """
        dinner on Sunday | Yes, I will come to dinner. | No, I cannot come to dinner.
        a walk in the park | Yes, I will join the walk. | No, I cannot join the walk.
        a birthday party | Yes, I will be at the party. | No, I cannot be at the party.
        a game of tennis | Yes, I will play tennis. | No, I cannot play tennis.
        coffee at four | Yes, I will be there at four. | No, I cannot be there at four.
        a trip to the lake | Yes, I will go to the lake. | No, I cannot go to the lake.
        a concert tonight | Yes, I am free tonight. | No, I am busy tonight.
        lunch tomorrow | Yes, I am free tomorrow. | No, I am busy tomorrow.
        a film on Friday | Yes, Friday suits me. | No, Friday is not possible.
        a weekend in town | Yes, I would love to. | No, I am afraid not.
        """,
        ask="Request",
    ),
    Twin(
        "who speaks",
        "Say as one person speaking alone: {}.",
        "Say as a group speaking together: {}.",
        "{}",
        """
        liking tea | I like tea. | We like tea.
        living here | I live here. | We live here.
        going by train | I go by train. | We go by train.
        needing a rest | I need a rest. | We need a rest.
        knowing the way | I know the way. | We know the way.
        selling flowers | I sell flowers. | We sell flowers.
        growing tomatoes | I grow tomatoes. | We grow tomatoes.
        singing every day | I sing every day. | We sing every day.
        wanting some soup | I want some soup. | We want some soup.
        waiting outside | I wait outside. | We wait outside.
        """,
        ask="Request",
    ),
    Twin(
        "exclamation",
        "Write with an exclamation mark at the end: {}",
        "Write with a full stop at the end: {}",
        "{}",
        """
        we won the game | We won the game! | We won the game.
        the bus is here | The bus is here! | The bus is here.
        it is snowing | It is snowing! | It is snowing.
        dinner is ready | Dinner is ready! | Dinner is ready.
        she said yes | She said yes! | She said yes.
        the show begins now | The show begins now! | The show begins now.
        I found my keys | I found my keys! | I found my keys.
        they are coming back | They are coming back! | They are coming back.
        the sun is out | The sun is out! | The sun is out.
        my tooth fell out | My tooth fell out! | My tooth fell out.
        """,
        ask="Request",
    ),
)
"""Topics of `rnd`: to answer in the manner that the request names, whatever the facts."""
