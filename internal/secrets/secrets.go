// Package secrets reads the file that names the people who may knock by a shared
// secret: one line each, a name, a secret and what it is good for.
package secrets

import "time"

// Person is one line of the file. Two lines may have one name, so that an old
// secret overlaps with a new one until its Expires.
type Person struct {
	Name     string // 1 to 32 bytes, as the name of a service
	Secret   []byte // 16 to 64 bytes
	Services []string
	Expires  time.Time // the zero time: never
}

// At reports whether the secret is good at a time.
func (p *Person) At(t time.Time) bool { return p.Expires.IsZero() || t.Before(p.Expires) }

// Opens reports whether the secret is good for a service or action. Without a list
// it is for all that the knock opens.
func (p *Person) Opens(name string) bool {
	if len(p.Services) == 0 {
		return true
	}
	for _, s := range p.Services {
		if s == name {
			return true
		}
	}
	return false
}
