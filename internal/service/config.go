// Package service puts the server together: configuration, data directory, control database, doors, metrics, and the start
// and stop of all of it.
package service

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/httpd"
)

// Version is what the binary calls itself.
const Version = "0.1.0"

// Config is the configuration of a server; every field is a flag of `bough serve`.
type Config struct {
	DataDir      string
	HTTPListen   string // host:port; port 0 picks a free one
	PGListen     string // host:port; port 0 picks a free one
	PGAdvertise  string // host:port or :port that clients use; "" is where the proxy listens
	Domain       string // endpoint hosts are ep-….<Domain>
	Region       string // default region id
	Storage      string // auto, btrfs, reflink or copy
	Preallocate  bool   // reserve the pool image's space
	PoolSize     int64  // bytes of a new pool image; 0 chooses
	PoolLimit    int64  // bytes up to which the image grows by itself; 0: as far as the host has room
	HostReserve  int64  // bytes to keep free on the host; 0 chooses
	PoolReserve  int64  // bytes to keep free in the pool; 0 chooses
	DatabaseURL  string // the control database; "" runs an own cluster in the data directory
	PostgresDirs []string
	Extensions   string // untrusted extensions that owners of databases may create; see postgres.ParseAllowList
	ComputeUser  string // OS user of computes, as root; "" chooses
	TLSCert      string
	TLSKey       string
	AllowPlain   bool   // let loopback clients connect without TLS
	StopComputes bool   // on SIGTERM too
	Cgroups      string // auto or off: whether the sizes of computes are enforced; "" is auto
	LogFormat    string
	LogLevel     string
	Handshake    time.Duration // limit of a client's handshake
	// How often what should be is compared with what is, and how long a difference must last before it is repaired.
	ReconcileEvery, ReconcilePatience time.Duration
	MeteringEvery                     time.Duration // how often usage is counted; 0 chooses
	MaxStarts                         int           // computes that start at once; 0 chooses
	History                           control.HistoryOptions
	OperationsKeep                    time.Duration   // how long the record of an operation that has ended is kept; 0 chooses
	PublicURL                         string          // where people reach the server: the start of links; "" is where it listens
	SMTPURL, SMTPFrom                 string          // how invitations are sent; see mail.New. "": their links are shown
	RateLimit                         httpd.RateLimit // of API calls; see httpd.ParseRateLimit
}

// DefaultDataDir is where a server keeps its data: /var/lib/bough as root, else $XDG_DATA_HOME/bough.
func DefaultDataDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/bough"
	}
	base := os.Getenv("XDG_DATA_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			home = "."
		}
		base = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(base, "bough")
}

var domainForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// check completes the configuration and refuses what cannot work.
func (c *Config) check() error {
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return core.Invalidf("--data-dir %q: %v", c.DataDir, err)
	}
	c.DataDir = dir
	c.Domain = strings.ToLower(strings.TrimSuffix(c.Domain, "."))
	if len(c.Domain) > 200 || !domainForm.MatchString(c.Domain) {
		return core.Invalidf("--domain %q is not a domain name; an example: db.localhost", c.Domain)
	}
	for flag, addr := range map[string]string{"--http-listen": c.HTTPListen, "--pg-listen": c.PGListen} {
		_, port, err := net.SplitHostPort(addr)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			return core.Invalidf("%s %q is not an address; an example: 127.0.0.1:8432", flag, addr)
		}
	}
	switch c.Cgroups {
	case "":
		c.Cgroups = cgroupsAuto
	case cgroupsAuto, cgroupsOff:
	default:
		return core.Invalidf("--cgroups must be auto or off")
	}
	if c.History.SnapshotWAL < 0 || c.History.SnapshotEvery < 0 {
		return core.Invalidf("--snapshot-wal and --snapshot-interval must not be negative")
	}
	if c.OperationsKeep < 0 {
		return core.Invalidf("--operations-keep must not be negative")
	}
	if c.MeteringEvery < 0 || c.MeteringEvery > time.Hour {
		return core.Invalidf("--metering-every must be between 0 and 1h")
	}
	if c.MaxStarts < 0 {
		return core.Invalidf("--concurrent-starts must not be negative")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return core.Invalidf("--tls-cert and --tls-key go together")
	}
	return nil
}

// advertisedPort is the port that clients use, given the one that the proxy listens on.
func (c *Config) advertisedPort(listening int) (int, error) {
	if c.PGAdvertise == "" {
		return listening, nil
	}
	_, port, err := net.SplitHostPort(c.PGAdvertise)
	if err != nil {
		return 0, core.Invalidf("--pg-advertise %q is not an address; an example: :5432", c.PGAdvertise)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return 0, core.Invalidf("--pg-advertise %q has no port", c.PGAdvertise)
	}
	return int(n), nil
}

// layout names what is in a data directory.
type layout struct{ dir string }

func (l layout) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}
func (l layout) admin() string    { return l.path("admin.json") }
func (l layout) lock() string     { return l.path("bough.lock") }
func (l layout) identity() string { return l.path("identity") }
func (l layout) control() string  { return l.path("control") }
func (l layout) builds() string   { return l.path("builds") }
func (l layout) logs() string     { return l.path("log") }
func (l layout) sealer() string   { return l.path("keys", "passwords.key") }
func (l layout) volumes() string  { return l.path("pool", "volumes") }

// id is a short name for the data directory, to be used outside of it.
func (l layout) id() string {
	sum := sha256.Sum256([]byte(l.dir))
	return hex.EncodeToString(sum[:4])
}

// runDir is a short folder for Unix sockets, whose paths the system limits to 107 bytes.
func (l layout) runDir() string {
	id := l.id()
	if os.Geteuid() == 0 {
		return filepath.Join("/run/bough", id)
	}
	if base := os.Getenv("XDG_RUNTIME_DIR"); base != "" && len(base) < 30 {
		return filepath.Join(base, "bough", id)
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("bough-%d", os.Geteuid()), id)
}
