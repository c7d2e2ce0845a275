"""Requests of which a program can tell whether they were followed, written for this project:
`request | check`, the checks being those of `texts.CHECKS`."""

REQUESTS = """
What is the capital of France? Answer in one word. | words 1 1
Name a colour of the rainbow. Answer in one word. | words 1 1
Is the sun a star? Answer only yes or no. | one of yes no
Can fish breathe under water? Answer only yes or no. | one of yes no
Is ice colder than steam? Answer only yes or no. | one of yes no
Write the word hello in capital letters. | has HELLO
Write a sentence about cats, all in small letters. | lower
Write a short sentence about rain, all in capital letters. | upper
Write a sentence that begins with the word "Yesterday". | begins Yesterday
Write a sentence that begins with the word "Because". | begins Because
Write a sentence about tea that ends with a question mark. | ends ?
Write a sentence about winter that ends with an exclamation mark. | ends !
Write a sentence with the word "umbrella" in it. | has umbrella
Write a sentence with the words "river" and "bridge" in it. | has river bridge
Describe the sea without using the word "blue". | lacks blue
Describe an apple without using the word "red". | lacks red
Describe a dog without using the word "dog". | lacks dog
Name three animals, separated by commas. | commas 2
Name four fruits, separated by commas. | commas 3
Name two countries, separated by a comma. | commas 1
List three things to take to the beach, each on a line of its own. | lines 3
List three vegetables, each on a line of its own. | lines 3
Explain in one sentence why we sleep. | sentences 1 1
Explain in one sentence what a bank does. | sentences 1 1
Describe a forest in at most ten words. | words 1 10
Describe your favourite food in at most ten words. | words 1 10
Describe a city at night in at most twelve words. | words 1 12
How many legs has a spider? Answer with a number in digits. | has 8
How many days has a week? Answer with a number in digits. | has 7
What is 5 plus 4? Answer with a number in digits. | has 9
Say good morning and use the name Anna. | has Anna
Greet a friend and use the name Peter. | has Peter
Write a sentence about bread that has a comma in it. | commas 1
Put the word "music" in quotation marks in a sentence. | has "music"
Write a title for a story about a fox. Use no full stop. | lacks .
Write a title for a book about bees. Use no full stop. | lacks .
Tell me about bicycles. Start with "Well,". | begins Well,
Tell me about the moon. Start with "First,". | begins First,
Answer with the single letter A. | words 1 1
Repeat this word once: banana. | has banana
Repeat this sentence: The door is open. | has The door is open
Write the numbers from one to three in digits. | has 1 2 3
Write a number between ten and twenty in digits. | digits
What year comes after 1999? Answer in digits. | has 2000
Give me a word that rhymes with "light". Answer in one word. | words 1 1
Give me the opposite of "hot". Answer in one word. | words 1 1
Write a question about the weather. | ends ?
Ask me what my name is. | has name ?
"""
