package main

import (
	"fmt"

	"example.com/targets/internal/sum"
)

func main() { fmt.Println(sum.Of(1, 2, 3)) }
