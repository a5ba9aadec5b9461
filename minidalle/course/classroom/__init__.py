"""The classroom: student copies of the lessons, and marks for what comes back.

release: a lesson to its student copy. grade: a folder of submissions to marks, feedback and a picture of the class.
In between: intake finds the notebooks, roster tells who handed in nothing, repair matches their cells with the
release, kernel runs a lesson once and is forked for every student, sandbox fences the student's process in, wire lets
it answer calls, marker judges the answers outside it.
"""
