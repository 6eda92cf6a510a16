package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
)

// Limits on what a client may send before it is authenticated, in bytes.
const (
	maxStartupLen  = 10_000 // whole packet, PostgreSQL's MAX_STARTUP_PACKET_LENGTH
	maxPasswordLen = 512    // body of a password message
	maxSASLLen     = 2_048  // body of a SASL message
)

// Request codes that stand in the place of a protocol version (PostgreSQL documentation, "Message Formats").
const (
	codeCancelRequest = 80877102
	codeSSLRequest    = 80877103
	codeGSSENCRequest = 80877104
	protocol30        = 3 << 16
)

// startupPacket is a length-prefixed packet without a type: what a client opens a connection with.
type startupPacket struct {
	code uint32
	body []byte // after the code
}

// readStartup reads one packet, exactly. first holds the bytes of it that were read before.
func readStartup(r io.Reader, first []byte) (startupPacket, error) {
	var head [8]byte
	n := copy(head[:], first)
	if _, err := io.ReadFull(r, head[n:]); err != nil {
		return startupPacket{}, err
	}
	size := binary.BigEndian.Uint32(head[:4])
	if size < 8 || size > maxStartupLen {
		return startupPacket{}, fatalf(codeProtocolViolation, textWrongLength)
	}
	p := startupPacket{code: binary.BigEndian.Uint32(head[4:]), body: make([]byte, size-8)}
	_, err := io.ReadFull(r, p.body)
	return p, err
}

// readMessage reads the body of one 'p' message: a password or a SASL response.
func readMessage(r io.Reader, limit int) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if head[0] == 'X' {
		return nil, errGone
	}
	size := int64(binary.BigEndian.Uint32(head[1:])) - 4
	if head[0] != 'p' {
		return nil, fatalf(codeProtocolViolation, "expected a password response, got message type %q", head[0])
	}
	if size < 0 || size > int64(limit) {
		return nil, fatalf(codeProtocolViolation, "the password message must not be longer than %d bytes", limit)
	}
	body := make([]byte, size)
	_, err := io.ReadFull(r, body)
	return body, err
}

// startup is a decoded StartupMessage. (pgproto3 refuses minor versions it does not know, and a server must not.)
type startup struct {
	role     string
	database string
	params   map[string]string // what goes to the compute, with user, database and filtered options
	opts     endpointOptions

	negotiate    bool     // the client asked for more than protocol 3.0
	unrecognized []string // _pq_. options
}

func parseStartup(p startupPacket) (*startup, error) {
	if p.code>>16 != 3 {
		return nil, fatalf(codeUnsupported, "unsupported frontend protocol %d.%d: this server supports 3.0",
			p.code>>16, p.code&0xffff)
	}
	st := &startup{params: map[string]string{}, negotiate: p.code > protocol30}
	rest := p.body
	for {
		name, tail, err := cutString(rest)
		if err != nil {
			return nil, err
		}
		rest = tail
		if name == "" {
			break
		}
		value, tail, err := cutString(rest)
		if err != nil {
			return nil, err
		}
		rest = tail
		switch {
		case strings.HasPrefix(name, "_pq_."):
			st.unrecognized = append(st.unrecognized, name)
			st.negotiate = true
		case strings.HasPrefix(name, "neon_"): // ours, not the compute's
		default:
			st.params[name] = value
		}
	}
	if len(rest) != 0 {
		return nil, fatalf(codeProtocolViolation, textWrongLayout)
	}
	st.role = st.params["user"]
	if st.role == "" {
		return nil, fatalf(codeInvalidAuth, "no PostgreSQL user name specified in startup packet")
	}
	if st.params["database"] == "" {
		st.params["database"] = st.role
	}
	st.database = st.params["database"]
	if raw, ok := st.params["options"]; ok {
		st.opts = parseOptions(raw)
		if st.opts.rest == "" {
			delete(st.params, "options")
		} else {
			st.params["options"] = st.opts.rest
		}
	}
	return st, nil
}

// checkReplication refuses replication that an endpoint does not give; see walsender in PostgreSQL's documentation of the
// parameter "replication". Logical replication goes through, to the compute's own host name. A session of it could still
// ask for a BASE_BACKUP: it would get no more than a copy of the role's own cluster.
func (st *startup) checkReplication(pooled bool) error {
	value := st.params["replication"]
	switch {
	case slices.Contains([]string{"", "false", "off", "no", "0"}, strings.ToLower(value)):
		return nil
	case pooled:
		f := fatalf(codeUnsupported, "pooled connections cannot replicate")
		f.hint = "Connect to the endpoint's own host name, without " + poolerSuffix + "."
		return f
	case value != "database": // as PostgreSQL compares it
		f := fatalf(codeUnsupported, "physical replication is not available: replication=%s", clip(value, 20))
		f.hint = "Use logical replication (replication=database); for a copy of the data make a branch or a read_only endpoint."
		return f
	}
	return nil
}

func cutString(b []byte) (string, []byte, error) {
	s, rest, ok := bytes.Cut(b, []byte{0})
	if !ok {
		return "", nil, fatalf(codeProtocolViolation, textWrongLayout)
	}
	return string(s), rest, nil
}

// endpointOptions is what the startup parameter "options" holds for us, and the rest of it for the compute.
type endpointOptions struct {
	endpoint string // as sent; "" when there is none, or more than one
	rest     string
}

// parseOptions takes endpoint=, project= and neon_… items out of the options. Items are separated by white space, which a
// backslash escapes, as PostgreSQL's pg_split_opts does.
func parseOptions(raw string) endpointOptions {
	var (
		out   endpointOptions
		keep  []string
		names int
	)
	take := func(item string) bool {
		for _, prefix := range []string{"endpoint=", "project="} {
			if id, ok := strings.CutPrefix(item, prefix); ok {
				out.endpoint = id
				names++
				return true
			}
		}
		return strings.HasPrefix(item, "neon_")
	}
	items := splitOptions(raw)
	for i := 0; i < len(items); i++ {
		item := items[i]
		switch {
		case take(item.text):
		case item.text == "-c" && i+1 < len(items) && take(items[i+1].text):
			i++
		case strings.HasPrefix(item.text, "-cneon_"), strings.HasPrefix(item.text, "--neon_"),
			strings.HasPrefix(item.text, "--neon-"):
		default:
			keep = append(keep, item.raw)
		}
	}
	if names != 1 {
		out.endpoint = ""
	}
	out.rest = strings.Join(keep, " ")
	return out
}

type optionItem struct {
	raw  string // with its escapes
	text string
}

func splitOptions(s string) []optionItem {
	var items []optionItem
	for i := 0; i < len(s); {
		if isSpace(s[i]) {
			i++
			continue
		}
		start := i
		var text strings.Builder
		for i < len(s) && !isSpace(s[i]) {
			if s[i] == '\\' {
				i++
				if i == len(s) {
					break // a lone backslash at the end stands for nothing
				}
			}
			text.WriteByte(s[i])
			i++
		}
		items = append(items, optionItem{raw: s[start:i], text: text.String()})
	}
	return items
}

func isSpace(b byte) bool { return b == ' ' || (b >= '\t' && b <= '\r') }

// cutPasswordForm splits endpoint=<id>;<password> or endpoint=<id>$<password> (project= works too).
func cutPasswordForm(s string) (endpoint, password string, err error) {
	rest, ok := strings.CutPrefix(s, "endpoint=")
	if !ok {
		rest, ok = strings.CutPrefix(s, "project=")
	}
	i := strings.IndexAny(rest, ";$")
	if !ok || i < 0 {
		return "", "", errors.New("not of the form endpoint=<id>;<password>")
	}
	return rest[:i], rest[i+1:], nil
}
