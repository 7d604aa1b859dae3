import java.io.BufferedWriter;
import java.lang.reflect.Field;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;
import org.apache.hadoop.security.authentication.util.KerberosName;

/**
 * What Hadoop's own class makes of rules and names. Reads lines {@code rules REALM RULES} and {@code name PRINCIPAL},
 * whose words are in base 64, and answers each with {@code ok WORD} or {@code refused WORD}.
 */
public final class ShortNames {
    private ShortNames() {}

    /** Arguments: the file to read, and the one to write. */
    public static void main(String[] arguments) throws Exception {
        Field realm = KerberosName.class.getDeclaredField("defaultRealm");
        realm.setAccessible(true);
        KerberosName.setRuleMechanism(KerberosName.MECHANISM_HADOOP);
        boolean usable = false;
        try (BufferedWriter answers = Files.newBufferedWriter(Path.of(arguments[1]))) {
            for (String line : Files.readAllLines(Path.of(arguments[0]))) {
                String[] words = line.split(" ", -1);
                String answer;
                try {
                    if (words[0].equals("rules")) {
                        usable = false;
                        realm.set(null, text(words[1]));
                        KerberosName.setRules(text(words[2]));
                        usable = true;
                        answer = "ok " + word("");
                    } else if (usable) {
                        answer = "ok " + word(new KerberosName(text(words[1])).getShortName());
                    } else {
                        answer = "refused " + word("the rules were refused");
                    }
                } catch (java.io.IOException | RuntimeException failure) {
                    answer = "refused " + word(failure.toString());
                }
                answers.write(answer);
                answers.newLine();
            }
        }
    }

    private static String text(String word) {
        return new String(Base64.getDecoder().decode(word), java.nio.charset.StandardCharsets.UTF_8);
    }

    private static String word(String text) {
        return Base64.getEncoder().encodeToString(text.getBytes(java.nio.charset.StandardCharsets.UTF_8));
    }
}
