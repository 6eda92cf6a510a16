package pool

import (
	"bytes"
	"strings"
)

// effect is what a client did to its session that outlives its transaction and is not reported: it must not reach the
// session's next user.
type effect uint8

const (
	effectSet effect = 1 << iota
	effectListen
	effectPrepare
	effectCursor
	effectTemp
	effectLock
	effectLoad // cannot be undone
)

// cleanups undo effects, in this order. ROLE and SESSION AUTHORIZATION are left alone by RESET ALL.
var cleanups = []struct {
	effect effect
	sql    string
}{
	{effectSet, "RESET SESSION AUTHORIZATION;RESET ROLE;RESET ALL;"},
	{effectCursor, "CLOSE ALL;"},
	{effectListen, "UNLISTEN *;"},
	{effectPrepare, "DEALLOCATE ALL;"},
	{effectTemp, "DISCARD TEMP;"},
	{effectLock, "SELECT pg_catalog.pg_advisory_unlock_all();"},
}

// warnings tell the client what will not last; effects that transactions commonly have for themselves give none.
var warnings = []struct {
	effect effect
	text   string
}{
	{effectSet, "a parameter that was set for the session does not last on a pooled connection"},
	{effectListen, "LISTEN has no effect on a pooled connection"},
	{effectPrepare, "a statement prepared in SQL does not last on a pooled connection"},
	{effectLock, "a session-level advisory lock does not last on a pooled connection"},
	{effectLoad, "LOAD has no lasting effect on a pooled connection"},
}

const warningHint = "It ended with the transaction: the next one may run in another session. Use the endpoint's own host name, without -pooler, for what needs a session (or SET LOCAL, or a startup option, for a parameter)."

// effectOfTag finds effects by what a server says that it did (CommandComplete).
func effectOfTag(tag []byte) effect {
	if len(tag) < 3 {
		return 0
	}
	switch tag[0] {
	case 'S':
		if string(tag) == "SET" {
			return effectSet
		}
	case 'L':
		switch string(tag) {
		case "LISTEN":
			return effectListen
		case "LOAD":
			return effectLoad
		}
	case 'P':
		if string(tag) == "PREPARE" {
			return effectPrepare
		}
	case 'D':
		if string(tag) == "DECLARE CURSOR" {
			return effectCursor
		}
	case 'C':
		if bytes.HasPrefix(tag, []byte("CREATE ")) {
			return effectTemp // the tag does not say whether it is a temporary one
		}
	}
	return 0
}

// Tags that undo what clients did themselves.
const (
	tagDiscardAll    = "DISCARD ALL"
	tagDeallocateAll = "DEALLOCATE ALL"
)

// effectOf finds effects that only the text of a query shows.
func effectOf(query []byte) (e effect) {
	if bytes.Contains(query, []byte("_advisory_lock")) || bytes.Contains(query, []byte("_ADVISORY_LOCK")) {
		e |= effectLock
	}
	if bytes.Contains(query, []byte("set_config")) || bytes.Contains(query, []byte("SET_CONFIG")) {
		// With true as its last argument it ends with the transaction; what is a parameter cannot be seen.
		if !bytes.Contains(query, []byte("true")) || bytes.Contains(query, []byte("false")) {
			e |= effectSet
		}
	}
	return e
}

// verb is what a query begins with, as far as it matters here.
type verb uint8

const (
	verbOther      verb = iota
	verbBegin           // BEGIN, START TRANSACTION
	verbCommit          // COMMIT, END
	verbRollback        // ROLLBACK, ABORT, of the whole transaction
	verbSetLocal        // SET of something that ends with the transaction, or is kept per client
	verbDeallocate      // DEALLOCATE of one statement
)

// verbOf looks at the first words of a query.
func verbOf(query []byte) verb {
	i := skipSpace(query, 0)
	if i == len(query) {
		return verbOther
	}
	switch query[i] | 0x20 {
	case 'b', 's', 'c', 'e', 'r', 'a', 'd':
	default:
		return verbOther
	}
	word, rest := firstWord(query[i:])
	switch word {
	case "begin", "start":
		return verbBegin
	case "commit", "end", "abort", "rollback":
		next, after := firstWord(rest)
		if next == "work" || next == "transaction" {
			next, _ = firstWord(after)
		}
		switch {
		case next == "to" || next == "prepared": // a savepoint; two-phase commit
			return verbOther
		case word == "commit" || word == "end":
			return verbCommit
		}
		return verbRollback
	case "deallocate":
		return verbDeallocate
	case "set":
		if one(rest) && setsNothingHidden(rest) {
			return verbSetLocal
		}
	}
	return verbOther
}

// setsNothingHidden looks at what follows SET.
func setsNothingHidden(rest []byte) bool {
	word, rest := firstWord(rest)
	if word == "session" {
		if word, _ = firstWord(rest); word == "characteristics" || word == "authorization" {
			return false
		}
	}
	switch word {
	case "local", "transaction", "constraints", "names", "time": // NAMES, TIME ZONE: client_encoding, TimeZone
		return true
	}
	for _, name := range startupTracked {
		if word == name {
			return true
		}
	}
	return false
}

// one tells whether a query has no second statement.
func one(query []byte) bool {
	i := bytes.IndexByte(query, ';')
	return i < 0 || skipSpace(query, i+1) == len(query)
}

// deallocated is the name of the statement in a query that is a DEALLOCATE and nothing else, not ALL.
func deallocated(query []byte) (name string, ok bool) {
	_, rest := firstWord(query[skipSpace(query, 0):])
	text := strings.TrimRight(strings.TrimSpace(string(rest)), "; \t\r\n")
	if w, after := firstWord([]byte(text)); w == "prepare" && len(bytes.TrimSpace(after)) > 0 {
		text = strings.TrimSpace(string(after))
	}
	if len(text) > 2 && text[0] == '"' && text[len(text)-1] == '"' {
		text = strings.ReplaceAll(text[1:len(text)-1], `""`, "\x00")
		if strings.Contains(text, `"`) {
			return "", false
		}
		return strings.ReplaceAll(text, "\x00", `"`), true
	}
	text = strings.ToLower(text)
	return text, text != "" && text != "all" && !strings.ContainsAny(text, " \t\r\n;\"'")
}

// firstWord returns the first word in lower case, after white space and comments, and what follows it.
func firstWord(b []byte) (word string, rest []byte) {
	i := skipSpace(b, 0)
	j := i
	for j < len(b) && (b[j]|0x20 >= 'a' && b[j]|0x20 <= 'z' || b[j] == '_' || b[j] >= '0' && b[j] <= '9') {
		j++
	}
	if j-i > 32 {
		return "", b[j:]
	}
	return strings.ToLower(string(b[i:j])), b[j:]
}

// skipSpace returns the index of the first byte that is not white space or in a comment.
func skipSpace(b []byte, i int) int {
	for i < len(b) {
		switch {
		case b[i] == ' ' || b[i] >= '\t' && b[i] <= '\r':
			i++
		case b[i] == '-' && i+1 < len(b) && b[i+1] == '-':
			n := bytes.IndexByte(b[i:], '\n')
			if n < 0 {
				return len(b)
			}
			i += n + 1
		case b[i] == '/' && i+1 < len(b) && b[i+1] == '*':
			i = skipComment(b, i)
		default:
			return i
		}
	}
	return len(b)
}

func skipComment(b []byte, i int) int {
	depth := 0
	for ; i < len(b); i++ {
		switch {
		case b[i] == '/' && i+1 < len(b) && b[i+1] == '*':
			depth++
			i++
		case b[i] == '*' && i+1 < len(b) && b[i+1] == '/':
			depth--
			i++
			if depth == 0 {
				return i + 1
			}
		}
	}
	return len(b)
}
