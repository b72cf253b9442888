package main

import (
	"fmt"

	"github.com/google/uuid"
)

var version = "unknown"

func main() {
	id := uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://example.com"))
	fmt.Println("go", version, id)
}
