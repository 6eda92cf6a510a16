package compute

import (
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/boughdb/bough/internal/core"
)

const (
	tailBytes = 8 << 10  // of the log, at most, in a hint
	tailLines = 15       // likewise
	logCap    = 16 << 20 // a log longer than this is set aside at the next start
)

// rotateLog sets a long log aside as <name>.1 and returns where the next server's output starts.
func rotateLog(path string) int64 {
	size := fileSize(path)
	if size <= logCap {
		return size
	}
	if err := os.Rename(path, path+".1"); err != nil {
		return size
	}
	return 0
}

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// logTail returns the last lines that were written from offset on.
func logTail(path string, offset int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	offset = max(offset, fileSize(path)-tailBytes)
	raw, err := io.ReadAll(io.NewSectionReader(f, offset, tailBytes))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	if len(lines) > tailLines {
		lines = lines[len(lines)-tailLines:]
	}
	return strings.Join(lines, "\n")
}

// The server's own words for settings that it refuses (lc_messages is C).
var settingComplaint = regexp.MustCompile(`(?m)(?:unrecognized configuration parameter "[^"\n]*"` +
	`|invalid value for parameter "[^"\n]*": "[^"]{0,200}"` +
	`|parameter "[^"\n]*" requires [^\n]*|parameter "[^"\n]*" cannot be [^\n"]*` +
	`|[^\n]{1,80} is outside the valid range for parameter "[^"\n]*"[^\n]*)`)

var libraryComplaint = regexp.MustCompile(`FATAL:  could not (?:access|load) (?:file|library) "([^"\n/]+)"`)

// explain turns a failed start into an error for the user, with the server's last words for the operator.
func (m *Manager) explain(ctx context.Context, cause error, logFile string, offset int64) error {
	tail := logTail(logFile, offset)
	e := &core.Error{Kind: core.KindUnavailable, Op: "compute.start", Hint: "end of " + logFile + ": " + tail, Err: cause}
	c := settingComplaint.FindString(tail)
	lib := libraryComplaint.FindStringSubmatch(tail)
	switch {
	case m.ctx.Err() != nil:
		return errClosed
	case errors.Is(cause, context.DeadlineExceeded):
		e.Message = "The compute did not get ready in time. Try again."
	case errors.Is(cause, context.Canceled) || errors.Is(ctx.Err(), context.Canceled):
		return errStopped
	case !errors.Is(cause, errExited):
		if ce, ok := errors.AsType[*core.Error](cause); ok {
			e.Kind, e.Code, e.Message = ce.Kind, ce.Code, ce.Message
		} else {
			e.Kind, e.Message = core.KindInternal, "internal error"
		}
	case c != "":
		e.Kind = core.KindUnprocessable
		e.Message = "The compute could not start: PostgreSQL says: " + c + ". Correct the endpoint's pg_settings and start it again."
	case lib != nil:
		e.Kind = core.KindUnprocessable
		e.Message = "The compute could not start: the library " + strconv.Quote(lib[1]) + " cannot be loaded. Take it " +
			"out of the project's settings.preload_libraries and start it again."
	case strings.Contains(tail, "No space left on device"):
		e.Kind = core.KindNoSpace
		e.Message = "The compute could not start: the storage is full. Free space and try again."
	case strings.Contains(tail, "Cannot allocate memory"):
		e.Message = "The compute could not start: the machine has not enough memory for its size. Make the compute smaller or suspend others."
	default:
		e.Message = "The compute could not start: PostgreSQL ended during start-up. Try again; the server's log has the reason."
		if said := lastWords(tail); said != "" {
			e.Message = "The compute could not start: PostgreSQL says: " + said + ". If the endpoint's pg_settings are the cause, correct them and start it again."
		}
	}
	return e
}

// The reason of a server process that is no session's: those have a role and a database between pid and severity.
var (
	fatalWords = regexp.MustCompile(`(?m)\[\d+\] FATAL:  ([^\n]{1,300})$`)
	hintWords  = regexp.MustCompile(`(?m)\[\d+\] HINT:  ([^\n]{1,300})$`)
)

// lastWords is what a server that ended gave as its reason, "" when that is not for users, who learn no paths.
func lastWords(tail string) string {
	fatal := fatalWords.FindStringSubmatchIndex(tail)
	if fatal == nil {
		return ""
	}
	said := tail[fatal[2]:fatal[3]]
	if hint := hintWords.FindStringSubmatch(tail[fatal[1]:]); hint != nil {
		said += " (" + strings.TrimSuffix(hint[1], ".") + ")"
	}
	if strings.Contains(said, "/") {
		return ""
	}
	return said
}

func itoa(n int) string { return strconv.Itoa(n) }
