package pool

import (
	"bytes"
	"slices"
	"strings"
)

// fixedParams are those that a server reports and a session cannot, or must not, set.
var fixedParams = []string{"server_version", "server_encoding", "integer_datetimes", "is_superuser", "session_authorization", "in_hot_standby"}

// startupTracked are the startup parameters that are kept per client, in lower case; the others select the pool. They are
// those that every supported major reports.
var startupTracked = []string{"application_name", "client_encoding", "datestyle", "intervalstyle", "standard_conforming_strings", "timezone"}

// vars are the values of the parameters that are kept per client, sorted by name. They never change: a client and its session
// with the same *vars agree.
type vars struct{ list []Param }

func trackedOf(params []Param) *vars {
	v := &vars{}
	for _, p := range params {
		if !slices.Contains(fixedParams, p.Name) {
			v.list = append(v.list, p)
		}
	}
	slices.SortFunc(v.list, func(a, b Param) int { return strings.Compare(a.Name, b.Name) })
	return v
}

func (v *vars) get(name string) (string, bool) {
	for i := range v.list {
		if v.list[i].Name == name {
			return v.list[i].Value, true
		}
	}
	return "", false
}

// with returns v with another value.
func (v *vars) with(name, value string) *vars {
	if slices.Contains(fixedParams, name) {
		return v
	}
	i, found := slices.BinarySearchFunc(v.list, name, func(p Param, name string) int { return strings.Compare(p.Name, name) })
	if found && v.list[i].Value == value {
		return v
	}
	w := &vars{list: slices.Clone(v.list)}
	if found {
		w.list[i].Value = value
	} else {
		w.list = slices.Insert(w.list, i, Param{name, value})
	}
	return w
}

func (v *vars) equal(w *vars) bool { return v == w || slices.Equal(v.list, w.list) }

// adjust appends the query that gives a session with the values of v those of to; nothing when they agree. A server of another
// major may not know a parameter: what it did not report is left alone.
func (v *vars) adjust(q []byte, to *vars) []byte {
	first := true
	for _, p := range to.list {
		have, known := v.get(p.Name)
		if !known || have == p.Value {
			continue
		}
		if first {
			q = append(q, "SELECT "...)
		} else {
			q = append(q, ',')
		}
		first = false
		q = append(q, "pg_catalog.set_config("...)
		q = appendLiteral(q, p.Name)
		q = append(q, ',')
		q = appendLiteral(q, p.Value)
		q = append(q, ",false)"...)
	}
	return q
}

// appendLiteral quotes a string so that standard_conforming_strings does not matter.
func appendLiteral(b []byte, s string) []byte {
	b = append(b, " E'"...)
	for i := range len(s) {
		if s[i] == '\'' || s[i] == '\\' {
			b = append(b, s[i])
		}
		b = append(b, s[i])
	}
	return append(b, '\'')
}

// canonicalName is how servers report a startup parameter that may be spelled in any case.
func (v *vars) canonicalName(name string) string {
	for _, p := range v.list {
		if strings.EqualFold(p.Name, name) {
			return p.Name
		}
	}
	return name
}

// splitParams parts startup parameters into those for the session and those that are kept per client, sorted.
func splitParams(params map[string]string) (session map[string]string, own []Param) {
	session = map[string]string{}
	for name, value := range params {
		switch lower := strings.ToLower(name); {
		case slices.Contains(startupTracked, lower):
			if lower == "application_name" {
				value = cleanName(value)
			}
			own = append(own, Param{name, value})
		case lower == "replication": // off, or the client would not be here
		default:
			session[name] = value
		}
	}
	slices.SortFunc(own, func(a, b Param) int { return strings.Compare(a.Name, b.Name) })
	return session, own
}

// cleanName does to an application name what servers do.
func cleanName(s string) string {
	const maxLen = 63 // NAMEDATALEN - 1
	b := []byte(s[:min(len(s), maxLen)])
	for i, c := range b {
		if c < 32 || c > 126 {
			b[i] = '?'
		}
	}
	return string(b)
}

// cutString takes a zero-terminated string from the front.
func cutString(b []byte) (s, rest []byte, ok bool) {
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		return nil, nil, false
	}
	return b[:i], b[i+1:], true
}
