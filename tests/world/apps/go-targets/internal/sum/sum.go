// Package sum adds numbers.
package sum

// Of returns the sum of its arguments.
func Of(numbers ...int) int {
	total := 0
	for _, number := range numbers {
		total += number
	}
	return total
}
