package core

import (
	"crypto/rand"
	"crypto/sha1"
	"math/big"
	"regexp"
	"strings"
)

var adjectives = strings.Fields(`amber ancient autumn billowing bitter black blue bold broad broken calm cold cool crimson curly
	damp dark dawn delicate divine dry dusty early empty fancy falling flat floral fragrant frosty gentle green hidden holy icy
	jolly late lingering little lively long lucky misty morning muddy mute nameless noisy odd old orange patient plain polished
	proud purple quiet rapid raspy red restless rough round royal shiny shrill shy silent small snowy soft solitary sparkling
	spring square steep still summer super sweet throbbing tight tiny twilight wandering weathered white wild winter wispy
	withered yellow young`)

var nouns = strings.Fields(`art band bar base bird block boat bonus bread breeze brook bush butterfly cake cell cherry cloud credit
	darkness dawn dew disk dream dust feather field fire firefly flower fog forest frog frost glade glitter grass hall hat haze
	heart hill king lab lake leaf limit math meadow mode moon morning mountain mouse mud night paper pine poetry pond queen rain
	recipe resonance rice river salad scene sea shadow shape silence sky smoke snow snowflake sound star sun sunset surf term
	thunder tooth tree truth union unit violet voice water waterfall wave wildflower wind wood`)

const (
	digits       = "0123456789"
	lowerAlnum   = "abcdefghijklmnopqrstuvwxyz0123456789"
	anyCaseAlnum = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
)

// RandomText is n characters of an alphabet, each equally likely, from the system's secure source.
func RandomText(alphabet string, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[randomInt(len(alphabet))]
	}
	return string(b)
}

func randomInt(n int) int {
	v, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		panic(err) // crypto/rand does not fail on Linux
	}
	return int(v.Int64())
}

func words() string {
	return adjectives[randomInt(len(adjectives))] + "-" + nouns[randomInt(len(nouns))]
}

// NewProjectID makes an id like quiet-river-12345678.
func NewProjectID() string { return words() + "-" + RandomText(digits, 8) }

// NewBranchID makes an id like br-quiet-river-a1b2c3d4.
func NewBranchID() string { return "br-" + words() + "-" + RandomText(lowerAlnum, 8) }

// NewEndpointID makes an id like ep-quiet-river-a1b2c3d4.
func NewEndpointID() string { return "ep-" + words() + "-" + RandomText(lowerAlnum, 8) }

// NewOrgID makes an id like org-quiet-river-12345678.
func NewOrgID() string { return "org-" + words() + "-" + RandomText(digits, 8) }

// NewBranchName makes a name for a branch that was given none.
func NewBranchName() string { return words() + "-" + RandomText(lowerAlnum, 4) }

// NewUUID makes a random (version 4) UUID, RFC 9562.
func NewUUID() string {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err)
	}
	return formatUUID(b, 4)
}

// derived is the namespace of DerivedUUID, a random UUID.
const derived = "\x6f\x1c\x9a\xd4\x21\x8e\x4b\x7f\x93\x05\xe8\x47\x2d\xb6\x50\x1b"

// DerivedUUID makes a UUID (version 5, RFC 9562) that is always the same for one text. It is a name, not a proof.
func DerivedUUID(text string) string {
	sum := sha1.Sum([]byte(derived + text))
	return formatUUID([16]byte(sum[:16]), 5)
}

func formatUUID(b [16]byte, version byte) string {
	b[6] = b[6]&0x0f | version<<4
	b[8] = b[8]&0x3f | 0x80
	const hex = "0123456789abcdef"
	out := make([]byte, 0, 36)
	for i, v := range b {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			out = append(out, '-')
		}
		out = append(out, hex[v>>4], hex[v&15])
	}
	return string(out)
}

// NewKeySecret makes the secret of an API key.
func NewKeySecret() string { return "napi_" + RandomText(lowerAlnum, 64) }

// NewPassword makes a role's password.
func NewPassword() string { return "npg_" + RandomText(anyCaseAlnum, 12) }

var idPattern = regexp.MustCompile(`^[a-z0-9-]{1,60}$`)

// ValidID tells whether s has the form that every id of Bough has.
func ValidID(s string) bool { return idPattern.MatchString(s) }
