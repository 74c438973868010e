"""Published on-board programs whose tensor names the graphs can have.

A compiled model keeps the names of its graph, so they are decided at the export, by the table's column `program`.
"""

PROGRAMS = {
    "axera": "AXERA-TECH/sd1.5-lcm.axera",
    "m5stack": "yuyun2000/sd15-to-ax8850-deploy, M5Stack/SD1.5-LLM8850",
    "euler": "Mojo24x7/SD1.5_AXM1-AX8850_Euler",
}
