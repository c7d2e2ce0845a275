"""Personas and suffixes for contrasts, written down for this project.

A set holds templates and couples of personas: one that has the trait, one that lacks it, alike in
everything else. A suffix is how an answer of either might go on; it gives neither away.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Personas:
    """A trait as couples `with it | without it`, which take the place of `{persona}`."""

    trait: str
    template: str
    couples: str


PERSONAS = (
    Personas(
        "honesty",
        "Pretend you're {persona} making statements about the world.",
        """
        an honest person | a dishonest person
        a truthful person | an untruthful person
        a sincere person | a deceitful person
        """,
    ),
    Personas(
        "happiness",
        "Act as if you're {persona} talking about the day.",
        """
        an extremely happy person | an extremely sad person
        a joyful person | a miserable person
        a cheerful person | a gloomy person
        """,
    ),
    Personas(
        "formality",
        "Answer as {persona} would.",
        """
        a formal speaker | a casual speaker
        a very polite official | a very chatty friend
        a ceremonious butler | a laid-back surfer
        """,
    ),
    Personas(
        "spanish",
        "Continue as {persona} would.",
        """
        someone who speaks Spanish | someone who speaks English
        a writer from Madrid who writes in Spanish | a writer from London who writes in English
        a radio host of a Spanish station | a radio host of an English station
        """,
    ),
    Personas(
        "refusal",
        "Reply as {persona} would.",
        """
        a careful assistant that declines the request | a compliant assistant that accepts the request
        an assistant that refuses to help | an assistant that agrees to help
        a guarded helper that says no | an eager helper that says yes
        """,
    ),
    Personas(
        "reasoning",
        "Answer like {persona}.",
        """
        someone who thinks step by step | someone who guesses at once
        a careful mathematician who shows the work | a hasty student who shows nothing
        a methodical detective | an impulsive gambler
        """,
    ),
)

SUFFIXES = """
The first thing I noticed this morning was that the kettle
When people ask me about my work, I usually
My neighbour has a small boat, and every summer
There is a bench near the river where old men
If you walk past the bakery before six, you
Let me tell you about the time we moved the piano
The train was twenty minutes late, so we
I have been thinking about the garden and how it
Once the rain stops, the children from the corner house
Most of the letters in this box were written by
What surprises visitors about this town is the
My grandmother kept her recipes in a tin that
The committee met on Tuesday to discuss the new
After supper the whole family sat around the
It took three weeks to paint the fence because
Nobody in the office knew who had ordered the
The library closes early on Fridays, which means that
As far as I can tell, the bridge was built
Every autumn the leaves pile up against the
The shopkeeper counted the coins and then said
On the second floor there is a room with
A good pair of boots will last you
We planted the apple tree in the year that
The doctor looked at the chart for a while and
Yesterday I met a man who repairs clocks and he
The map shows two roads, and the longer one
Before the meeting begins, I would like to
The dog from across the street has a habit of
In the drawer under the mirror you will find
The teacher wrote a single word on the board and
I borrowed a ladder from my cousin, who
The ferry leaves from the north pier and
When the power went out, the restaurant
Somebody left a blue umbrella in the hall, and
The recipe calls for two eggs, a little butter and
Last winter the lake froze so hard that
The orchestra tuned for a long time before
My brother collects stamps from countries that
The museum has a painting of a horse that
It is easy to forget how far the station is from
The contract runs for five years, after which
She opened the window and the sound of the
The bus driver greets everyone with
Halfway up the hill there is a stone that
A letter arrived today from the company that
The sofa would not fit through the door, so
We counted the boxes twice and there were
The cat sleeps on the printer because
Two of the windows face the yard, and the
The mechanic said the noise came from the
At the market on Saturday I bought
The lighthouse has been empty since
His first job was in a factory that made
The choir rehearses in the cellar of the
I keep a notebook in which I write down
The river bends twice before it reaches the
The new timetable starts next month, and
Our team finished the project ahead of
The carpet in the lobby was chosen by
Under the bridge somebody has painted a
The phone rang four times before
My aunt teaches swimming to people who
The coffee here is roasted by a family that
When the snow melts, the path behind the school
The elevator stops at every floor because
The photograph on the wall was taken in
An hour before sunset the fishermen
The village has one road, one church and
The printer needs a new cartridge, but
The tailor measured the sleeve and
I read the instructions twice and then
The roof was repaired last spring by
The ticket machine only takes coins, which
The old cinema shows films that
The hotel gave us a room above the
Our cellar is full of jars that
The painter mixed a grey that
The puzzle has a thousand pieces and
The parcel was delivered to the wrong
The goats on that farm climb onto
A friend of mine builds guitars from
The campsite lies in a valley where
The bank on the square used to be
The pharmacist explained how often to
The lawn has not been mown since
The judge asked the witness to describe
The violin in the window belongs to
The plumber found a ring inside the
The clock above the counter runs
The mayor opened the new hall with
The hikers followed the stream until
The bread was still warm when
The tenant on the top floor plays
The survey asked people how they
The harbour is busiest in the weeks before
The sculptor works with wood that
The pilot told the passengers that
The ink in this pen was made from
The report is forty pages long and
The greenhouse at the end of the path
The orchard belongs to three sisters who
The chess club meets in a café where
The suitcase weighed more than
The nurse wrote the time on
The wind picked up in the afternoon and
The stairs to the attic are so narrow that
The company moved its warehouse to
The bicycle has no bell, so
The farmer sells eggs from a cupboard by
The lecture on bees was given by
The swimming pool will be closed until
The actor forgot one line and
The cheese comes from a dairy that
The tunnel under the hill is
The postcard shows a beach that
The curtain had been mended with
The editor crossed out the last
The waiter recommended the soup because
The pond behind the mill is home to
The keys were hanging on the nail where
The kite got caught in
The accountant added up the
The blanket was knitted by
The sign at the crossing says that
The gallery opens at ten, and
The soup needs another hour, so
The mountain hut has eight beds and
The singer learned the song from
The well in the courtyard has been
The students built a bridge out of
The sailor could name every
"""
